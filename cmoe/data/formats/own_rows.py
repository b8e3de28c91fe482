"""Rows of a user's own task as samples, whatever format its file has.

The format is that of a file's first row, and all its rows have it:

    conversations   LLaVA's and ShareGPT's (`talks`)
    messages        OpenAI's (`talks`)
    text            {"question_id"?, "text", "answer" | "answers", "image"?}, as CoIN's tests
    table           columns `id`?, `question`, `answer` | `answers`, `image`?, by any names

Where several answers stand under `answer`, they are `answers`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmoe.common.errors import DataError
from cmoe.common.nearest import unknown
from cmoe.common.parsing import parse_json
from cmoe.data import boxes
from cmoe.data.formats.captions import Captions
from cmoe.data.formats.coin_rows import KEYS, METADATA, asked_and_answered
from cmoe.data.formats.containers import open_rows
from cmoe.data.formats.own_images import own_image
from cmoe.data.formats.parsed import Parsed, parsed
from cmoe.data.formats.talks import Talk, read_talk
from cmoe.data.row_rules import (
    RowRule,
    listed,
    named,
    require_id,
    require_object,
    require_questions,
    require_size,
    require_text,
    shown,
)
from cmoe.data.samples import Sample, Turn
from cmoe.data.settings import COLUMNS, DataConfig

_TALKS = ("conversations", "messages")
_KEYS = (*KEYS, "messages", "images", "answers")
_FORMATS = (
    "conversations, messages, text with answer or answers, and tables with the columns question "
    "and answer (data.own has columns)"
)


class OwnRows:
    """The rows of a split of a user's own task.

    Args:
        data: The section that names the task.
        rule: Of the split.

    Raises:
        DataError: The file is missing, or of no format that is read.
    """

    def __init__(self, data: DataConfig, rule: RowRule) -> None:
        own = data.own[rule.task]
        self._rule, self._root, self._said = rule, Path(data.root), own.file(rule.split)
        self._images = self._root / data.images_of(rule.task)
        self._columns = {name: own.columns.get(name, name) for name in COLUMNS}
        self._mapped = own.columns
        wanted = {*_KEYS, *self._columns.values()}
        try:
            self._file = open_rows(self._root, self._said, wanted)
        except OSError as error:
            raise DataError(f"{self._said}: can't be read: {error.strerror}") from error
        tested = rule.split == "test" and own.captions is not None
        self._captions = Captions(self._root / str(own.captions)) if tested else None
        self._format: str | None = None
        if columns := self._file.columns:  # said once, and not of every row
            self._format = next((key for key in _TALKS if key in columns), "table")
            if self._format == "table":
                try:
                    self._require_columns({"question", *self._mapped}, columns)
                except DataError as error:
                    raise DataError(f"{self._said}: {error}") from None

    def parsed(self) -> Parsed:
        """Every row, once."""
        return parsed(self._file.rows, self._read, self._rule)

    def told(self, count: int) -> str:
        """What was read, in a line.

        Args:
            count: Of the rows that were.
        """
        columns = self._columns.values() if self._format == "table" else (*_KEYS, *METADATA)
        unread = [name for name in self._file.columns if name not in columns]
        more = f"; not read: {listed(unread)}" if unread else ""
        return (
            f"{self._rule.task}/{self._rule.split}: {self._format} ({self._file.kind}), "
            f"{count:,} rows{more}"
        )

    def none(self) -> DataError:
        """The error of a file without rows."""
        told = f"{self._rule.task}/{self._rule.split} needs one at least"
        return DataError(f"{self._said}: has no rows; {told}")

    def _read(self, number: int, row: Any) -> Sample:
        row = {key: value for key, value in require_object(row).items() if value is not None}
        found = self._format_of(row)
        if self._format is None:
            if found == "table":
                self._require_columns({"question"}, tuple(row))
            self._format = found
        if found != self._format:
            raise DataError(
                f"a row of the format {found}, and the first is of {self._format}; all rows of a "
                "file have one format"
            )
        known = self._id(number, row)
        try:
            if self._captions is not None:
                row = self._captions.answered(number, found, row)
            return self._sample(known, row)
        except DataError as error:
            raise named(error, known) from None

    def _format_of(self, row: Mapping[str, Any]) -> str:
        for key in _TALKS:
            if key in row:
                return key
        if self._file.columns and self._format is not None:
            return self._format
        if "text" in row and not self._mapped:
            return "text"
        if self._mapped or "question" in row:
            return "table"
        if self._format is not None:
            return self._format
        raise DataError(f"of no format that is read; has {listed(row)}; read are {_FORMATS}")

    def _require_columns(self, needed: set[str], there: Sequence[str]) -> None:
        """Refuse a table without columns that it needs; one of answers is among them.

        Raises:
            DataError: Names one.
        """
        if not {"answer", "answers"} & needed and self._columns["answers"] not in there:
            needed = {*needed, "answer"}
        for name in sorted(needed):
            if (column := self._columns[name]) not in there:
                key = f"data.own.{self._rule.task}.columns.{name}"
                raise DataError(f"has no column {column!r} ({key}); {unknown(column, there)}")

    def _id(self, number: int, row: Mapping[str, Any]) -> str:
        if self._format == "table":
            keys: tuple[str, ...] = (self._columns["id"],)
        else:
            keys = ("question_id", "id")
        found = {key: require_id(row[key], key, row) for key in keys if key in row}
        if len({*found.values()}) > 1:
            raise DataError("question_id and id differ; one of them is enough")
        return next(iter(found.values()), str(number))

    def _sample(self, known: str, row: Mapping[str, Any]) -> Sample:
        if self._format == "table":
            answers, size = self._several(row), None
            talk = self._cells(row, answers)
        else:
            if not self._file.columns:
                for key in row:
                    if key not in (*_KEYS, *METADATA):
                        raise DataError(f"unknown key {shown(key)}; {unknown(str(key), _KEYS)}")
            row = _apart(row)
            answers, size = _answers(row.get("answers"), "answers"), require_size(row.get("size"))
            talk = self._talk(row, answers)
        return self._made(known, talk, answers, size)

    def _talk(self, row: Mapping[str, Any], answers: tuple[str, ...]) -> Talk:
        images = _images(row)
        if self._format in _TALKS:
            assert self._format is not None
            if self._format not in row:
                raise DataError(f"has no {self._format}, as the first row has; has {listed(row)}")
            for key in (*_TALKS, "text", "answer", "answer_bbox"):
                if key in row and key != self._format:
                    raise DataError(
                        f"both {self._format} and {key}; a row has the one or the other"
                    )
            return read_talk(row, self._format, images)
        if answers and "answer" not in row:
            row = {**row, "answer": _commonest(answers)}
        asked, said = asked_and_answered(row, self._rule)
        return Talk(asked, [("answer", text) for text in said], images)

    def _cells(self, row: Mapping[str, Any], answers: tuple[str, ...]) -> Talk:
        question, answer, image = (self._columns[name] for name in ("question", "answer", "image"))
        if question not in row:
            raise DataError(f"{question} is empty")
        said = row.get(answer)
        if isinstance(said, list):
            said = said[0] if len(said) == 1 else None
        if said is None and not answers:
            raise DataError(f"{answer} is empty")
        images = _listed(row.get(image), image, self._file.kind)
        return Talk(
            [(question, row[question])],
            [(answer, _commonest(answers) if said is None else said)],
            images,
        )

    def _several(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The reference answers of a table's row; a column of one answer may hold several."""
        answer, answers = self._columns["answer"], self._columns["answers"]
        held = row.get(answers)
        if held is not None:
            cells = self._file.kind in ("CSV", "TSV")
            return _answers(_json(held, answers) if cells else held, answers)
        if isinstance(held := row.get(answer), list) and len(held) != 1:
            return _answers(held, answer)
        return ()

    def _made(
        self, known: str, talk: Talk, answers: tuple[str, ...], size: tuple[int, int] | None
    ) -> Sample:
        rule = self._rule
        if rule.split == "test" and len(talk.asked) > 1:
            raise DataError(
                f"has {len(talk.asked)} questions; a test row is one question and its answer"
            )
        pictures = tuple(own_image(image, self._images) for image in talk.images)
        texts = require_questions(talk.asked, len(pictures), rule)
        if talk.told is not None:
            field, told = talk.told
            texts[0] = f"{require_text(told, field, 'question', rule).strip()}\n{texts[0]}"
        said = [require_text(text, field, "answer", rule) for field, text in talk.said]
        if rule.boxed:
            boxes.read_answer(said[0], talk.said[0][0])
        for number, answer in enumerate(answers):
            require_text(answer, f"answers[{number}]", "answer", rule)
        if answers and said[0] not in answers:
            raise DataError(f"answer is {shown(said[0])}, and answers hasn't it")
        further = tuple(map(Turn, texts[1:], said[1:]))
        return Sample(known, texts[0], said[0], pictures, size, further, answers)


def _apart(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with its several answers under `answers`, where they stand under `answer`."""
    if not isinstance(row.get("answer"), list):
        return row
    if "answers" in row:
        raise DataError("both answers, and several under answer; a row has the one or the other")
    return {("answers" if key == "answer" else key): value for key, value in row.items()}


def _images(row: Mapping[str, Any]) -> list[Any]:
    """A row's own images, under either key."""
    if "image" in row and "images" in row:
        raise DataError("both image and images; a row has the one or the other")
    found = row.get("image", row.get("images"))
    if "images" in row and not isinstance(found, list):
        raise DataError(f"images must be a list, this is {shown(found)}")
    return [] if found is None else list(found) if isinstance(found, list) else [found]


def _listed(cell: Any, column: str, kind: str) -> list[Any]:
    """The images of a table's cell: one, or a list of them."""
    if kind in ("CSV", "TSV") and isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = _json(cell, column)
    return [] if cell is None else list(cell) if isinstance(cell, list) else [cell]


def _json(cell: Any, column: str) -> Any:
    try:
        found = parse_json(cell)
    except ValueError as error:
        raise DataError(f"{column} must be a list in JSON: {error}; it is {shown(cell)}") from error
    if not isinstance(found, list):
        raise DataError(f"{column} must be a list in JSON, this is {shown(cell)}")
    return found


def _answers(found: Any, field: str) -> tuple[str, ...]:
    """Reference answers: texts, or objects that have one each under `answer`."""
    if found is None:
        return ()
    each = found if isinstance(found, list) else []
    each = [one.get("answer") if isinstance(one, Mapping) else one for one in each]
    if not each or not all(isinstance(one, str) for one in each):
        raise DataError(f"{field} must be texts, one at least, this is {shown(found)}")
    return tuple(each)


def _commonest(answers: tuple[str, ...]) -> str:
    """What most people say; of those that as many say, the first."""
    return Counter(answers).most_common(1)[0][0]
