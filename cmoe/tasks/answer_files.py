"""CoIN's files of answers and predictions, and the answer files of the data sets behind them.

Answers to a task are read from CoIN's `test.json` or `val.json`, or from the data set's own file:

    ScienceQA   problems.json, with pid_splits.json beside it: every id of its test split
    TextVQA     TextVQA_0.5.1_val.json: ten answers to a question
    GQA         testdev_balanced_questions.json

Answers to no task of CoIN's are a list of rows, or JSON lines: {"question_id", "answer"}, or
"answers" in its place where there are several; a box in pixels adds "size", [width, height]. What
was asked, "text", and "image" are read for the rules that go by them.

Predictions are JSON lines: {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}.
Ids are numbers in some files and text in others, and CoIN joins the one with the other: here all
are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cmoe.common.errors import DataError
from cmoe.common.files import whole
from cmoe.data.formats.coin_rows import coin_rows
from cmoe.data.formats.documents import parse_document, read_document, read_file
from cmoe.data.formats.parsed import usable
from cmoe.data.row_rules import (
    RowRule,
    listed,
    require_id,
    require_object,
    require_size,
    shown,
)
from cmoe.data.samples import Sample
from cmoe.tasks.scorer import Target
from cmoe.tasks.scorers import ANSWERS, OPTIONS

_OPTION = re.compile(r"^[A-E]\. ", re.MULTILINE)
_ROWS = "a list of rows with question_id, text and answer"


def choices(text: str) -> int | None:
    """The options that a question's text lists, each on a line of its own; None for no list."""
    return len(_OPTION.findall(text)) or None


def target_of(sample: Sample) -> Target:
    """What a scorer needs of a sample that nothing else is known of."""
    image = sample.images[0].name.rpartition("/")[2] if sample.images else ""
    return Target(
        sample.answer, sample.size, choices(sample.text), sample.answers, sample.text, image
    )


# Answers


def read_targets(task: str, file: Path) -> dict[str, Target]:
    """What a task's predictions are scored against, by question id, in the file's order.

    Raises:
        DataError: The file is missing or of another kind, or a row of it can't be used.
    """
    found = read_document(file)
    own, read = _OWN.get(task, (None, None))
    if isinstance(found, list):
        rows = _coin_rows(task, file, found)
    elif isinstance(found, Mapping) and read is not None:
        rows = read(file, found)
    else:
        needed = f"{_ROWS}, or {own}" if own else _ROWS
        raise DataError(f"{file}: has no answers to {task}; needed is {needed}")
    return _by_id(file, rows)


def read_answers(file: Path) -> dict[str, Target]:
    """What predictions of no task in particular are scored against, by question id.

    Args:
        file: Of a JSON list or of JSON lines; further fields are passed over.

    Raises:
        DataError: The file is missing, or a row of it can't be used.
    """
    rows: Iterable[tuple[str, Any]] = _lines(file)
    if read_file(file).lstrip().startswith(b"["):
        rows = ((f"{file}, row {n}", row) for n, row in enumerate(read_document(file)))
    return _by_id(file, (_answer(where, row) for where, row in rows))


def _answer(where: str, row: Any) -> tuple[str, str, Target]:
    with _at(where):
        row = require_object(row)
        return where, require_id(row.get("question_id"), "question_id", row), read_target(row)


def read_target(row: Mapping[str, Any]) -> Target:
    """The target that a row tells: `answer` or `answers`; `size`, `text` and `image`, if any.

    Raises:
        DataError: It has neither or both, or one of them can't be used.
    """
    if ("answer" in row) == ("answers" in row):
        raise DataError(f"answer or answers is needed, one of them; has {listed(row)}")
    size = require_size(row["size"]) if row.get("size") is not None else None
    question, image = (found if type(found := row.get(k)) is str else "" for k in ("text", "image"))
    if "answer" in row:
        return Target(_text(row, "answer"), size, question=question, image=image)
    answers = row["answers"]
    texts = isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
    if not texts or not answers:
        raise DataError(f"answers must be texts, at least one, this is {shown(answers)}")
    return Target(answers[0], size, None, tuple(answers), question, image)


def _by_id(file: Path, rows: Iterable[tuple[str, str, Target]]) -> dict[str, Target]:
    targets: dict[str, Target] = {}
    for where, key, target in rows:
        if key in targets:
            raise DataError(f"{where}: id {key!r} stands twice in this file; each stands once")
        targets[key] = target
    if not targets:
        raise DataError(f"{file}: has no answers; at least one is needed")
    return targets


_Rows = Iterator[tuple[str, str, Target]]
"""Of each row where it stands, its id and its target."""


def _coin_rows(task: str, file: Path, found: list[Any]) -> _Rows:
    rule = RowRule(task, "test")
    rows = coin_rows(file, found, file.parent, rule)
    samples = usable(rows, rule, lambda _: None, pictures=False)
    for number, sample in enumerate(samples):
        yield f"{file}, row {number}", sample.id, target_of(sample)


def _science_qa(file: Path, found: Mapping[str, Any]) -> _Rows:
    beside = file.with_name("pid_splits.json")
    splits = read_document(beside)
    test = splits.get("test") if isinstance(splits, Mapping) else None
    if not isinstance(test, list):
        raise DataError(f'{beside}: needs "test", a list of ids')
    for number, listed_id in enumerate(test):
        where = f"{beside}, test, row {number}"
        with _at(where):
            key = require_id(listed_id, "an id", {})
        problem = found.get(key)
        match problem:
            case {"choices": [*options], "answer": int(answer)} if type(
                answer
            ) is int and 0 <= answer < min(len(options), len(OPTIONS)):
                yield where, key, Target(OPTIONS[answer], choices=len(options))
            case None:
                raise DataError(f"{where}: id {key!r} is not in {file}; every test id must be")
            case _:
                raise DataError(
                    f"{file}, id {key!r}: needs choices, a list, and answer, the number of one of "
                    f"the first {len(OPTIONS)}; this is {shown(problem)}"
                )


def _text_vqa(file: Path, found: Mapping[str, Any]) -> _Rows:
    data = found.get("data")
    if not isinstance(data, list):
        raise DataError(f'{file}: needs "data", a list of questions with their answers')
    for number, row in enumerate(data):
        where = f"{file}, data, row {number}"
        with _at(where):
            row = require_object(row)
            key, answers = (
                require_id(row.get("question_id"), "question_id", row),
                row.get("answers"),
            )
        if (
            not isinstance(answers, list)
            or len(answers) != ANSWERS
            or not all(isinstance(answer, str) for answer in answers)
        ):
            raise DataError(
                f"{where}, id {key!r}: answers must be {ANSWERS} texts, this is {shown(answers)}"
            )
        yield where, key, Target(answers[0], answers=tuple(answers))


def _gqa(file: Path, found: Mapping[str, Any]) -> _Rows:
    for key, row in found.items():
        where = f"{file}, id {shown(key)}"
        with _at(where):
            answer = _text(require_object(row), "answer")
            yield where, require_id(key, "an id", {}), Target(answer)


_OWN: Mapping[str, tuple[str, Callable[[Path, Mapping[str, Any]], _Rows]]] = {
    "ScienceQA": ("ScienceQA's problems.json", _science_qa),
    "TextVQA": ("TextVQA_0.5.1_val.json", _text_vqa),
    "GQA": ("GQA's testdev_balanced_questions.json", _gqa),
}
"""A data set's own file, and what reads it."""


# Predictions


@dataclass(frozen=True)
class Prediction:
    """What a model said to a question; `prompt` is the question, `metadata` what else is known."""

    question_id: str
    prompt: str
    text: str
    metadata: Mapping[str, Any]


def read_predictions(file: Path) -> dict[str, str]:
    """The predictions of any method: question id -> text, in the file's order.

    Blank lines and further fields are passed over.

    Raises:
        DataError: The file is missing, a line can't be used, or an id stands twice.
    """
    said: dict[str, str] = {}
    for where, row in _lines(file):
        with _at(where):
            row = require_object(row)
            key, text = require_id(row.get("question_id"), "question_id", row), _text(row, "text")
        if key in said:
            raise DataError(f"{where}: id {key!r} stands twice in this file; each stands once")
        said[key] = text
    return said


def write_predictions(
    file: Path, task: str, model_id: str, predictions: Iterable[Prediction]
) -> None:
    """Write predictions, or leave what was there; the same ones make the same file.

    Args:
        file: Of JSON lines.
        task: Whose questions they answer; an answer's id is made of it, too, for question ids come
            again in other tasks.
        model_id: Who said so.
        predictions: In the order of the test, by which CoIN matches ImageNet's.
    """
    with whole(file) as beside, beside.open("w", encoding="utf-8") as lines:
        for prediction in predictions:
            said = json.dumps([model_id, task, prediction.question_id, prediction.text])
            more = {"answer_id": sha256(said.encode()).hexdigest()[:22], "model_id": model_id}
            row = asdict(prediction)
            metadata = row.pop("metadata")
            lines.write(json.dumps(row | more | {"metadata": metadata}) + "\n")


# Their fields


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines, and where each stands; blank lines are passed over."""
    # Not `splitlines`: what parts lines for Unicode may stand within a text.
    for number, line in enumerate(read_file(file).split(b"\n"), start=1):
        if line.strip():
            yield f"{file}, line {number}", parse_document(line, f"{file}, line {number}")


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Say in an error where it was."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _text(row: Mapping[str, Any], field: str) -> str:
    text = row.get(field)
    if not isinstance(text, str):
        raise DataError(f"{field} must be text, this is {shown(text)}; has {listed(row)}")
    return text
