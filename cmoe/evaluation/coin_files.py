"""CoIN's files of answers and predictions, and the answer files of the data sets behind them.

Answers to a task are read from CoIN's `test.json` or `val.json`, or from the data set's own file:

    ScienceQA   problems.json, with pid_splits.json beside it: every id of its test split
    TextVQA     TextVQA_0.5.1_val.json: ten answers to a question
    GQA         testdev_balanced_questions.json

Predictions are JSON lines: {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}.
Ids are numbers in some files and text in others, and CoIN joins the one with the other: here all
are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cmoe.data.samples import DataError
from cmoe.evaluation.scorers import ANSWERS, OPTIONS, Target, numbers
from cmoe.files import whole

_OPTION = re.compile(r"^[A-E]\. ", re.MULTILINE)
_ROWS = "a list of rows with question_id, text and answer"


def choices(text: str) -> int | None:
    """The options that a question's text lists, each on a line of its own; None for no list."""
    return len(_OPTION.findall(text)) or None


# Answers


def read_targets(task: str, file: Path) -> dict[str, Target]:
    """What a task's predictions are scored against, by question id, in the file's order.

    Raises:
        DataError: The file is missing or of another kind, or a row of it can't be used.
    """
    found = _read_json(file)
    own, read = _OWN.get(task, (None, None))
    if isinstance(found, list):
        rows = _coin_rows(task, file, found)
    elif isinstance(found, Mapping) and read is not None:
        rows = read(file, found)
    else:
        needed = f"{_ROWS}, or {own}" if own else _ROWS
        raise DataError(f"{file}: has no answers to {task}; needed is {needed}")
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
    for number, row in enumerate(found):
        where = f"{file}, row {number}"
        row = _object(row, where)
        key = _id(row, where)
        # CoIN scores a box against this field, where there are both.
        field = "answer_bbox" if task == "Grounding" and "answer_bbox" in row else "answer"
        answer, text = _text(row, field, where), _text(row, "text", where)
        if task == "Grounding" and numbers(answer) is None:
            raise DataError(f"{where}: {field} must be a box of four numbers, this is {answer!r}")
        yield where, key, Target(answer, _size(row, where), choices(text))


def _science_qa(file: Path, found: Mapping[str, Any]) -> _Rows:
    beside = file.with_name("pid_splits.json")
    splits = _read_json(beside)
    test = splits.get("test") if isinstance(splits, Mapping) else None
    if not isinstance(test, list):
        raise DataError(f'{beside}: needs "test", a list of ids')
    for number, key in enumerate(test):
        where = f"{beside}, test, row {number}"
        problem = found.get(str(key))
        match problem:
            case {"choices": [*options], "answer": int(answer)} if (
                0 <= answer < min(len(options), len(OPTIONS))
            ):
                yield where, str(key), Target(OPTIONS[answer], choices=len(options))
            case None:
                raise DataError(f"{where}: id {key!r} is not in {file}; every test id must be")
            case _:
                raise DataError(
                    f"{file}, id {key!r}: needs choices, a list, and answer, the number of one of "
                    f"the first {len(OPTIONS)}; this is {str(problem)[:120]}"
                )


def _text_vqa(file: Path, found: Mapping[str, Any]) -> _Rows:
    data = found.get("data")
    if not isinstance(data, list):
        raise DataError(f'{file}: needs "data", a list of questions with their answers')
    for number, row in enumerate(data):
        where = f"{file}, data, row {number}"
        row = _object(row, where)
        key, answers = _id(row, where), row.get("answers")
        if (
            not isinstance(answers, list)
            or len(answers) != ANSWERS
            or not all(isinstance(answer, str) for answer in answers)
        ):
            raise DataError(
                f"{where}, id {key!r}: answers must be {ANSWERS} texts, this is {answers!r}"
            )
        yield where, key, Target(answers[0], answers=tuple(answers))


def _gqa(file: Path, found: Mapping[str, Any]) -> _Rows:
    for key, row in found.items():
        where = f"{file}, id {key!r}"
        yield where, key, Target(_text(_object(row, where), "answer", where))


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
    # Not `splitlines`: what parts lines for Unicode may stand within a prediction.
    for number, line in enumerate(_read(file).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        row = _object(_parsed(line, where), where)
        key, text = _id(row, where), _text(row, "text", where)
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


# JSON and its fields


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error


def _read_json(file: Path) -> Any:
    return _parsed(_read(file), str(file))


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        raise DataError(f"{where}: not JSON as it has to be: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once: of two, Python would take the second without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} stands twice in one object; each stands once")
    return found


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: an object is needed, this is {str(row)[:120]}")
    return row


def _id(row: Mapping[str, Any], where: str) -> str:
    key = row.get("question_id")
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise DataError(
            f"{where}: question_id must be a whole number or text, this is {key!r}; has "
            f"{', '.join(row)}"
        )
    return str(key)


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    text = row.get(field)
    if not isinstance(text, str):
        raise DataError(f"{where}: {field} must be text, this is {text!r}; has {', '.join(row)}")
    return text


def _size(row: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    match row.get("size"):
        case None:
            return None
        case [int(width), int(height)] if width > 0 and height > 0:
            return width, height
    raise DataError(f"{where}: size must be width and height, this is {row['size']!r}")
