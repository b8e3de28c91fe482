"""Rows of CoIN's JSON files, as samples.

    train   {"id" | "question_id", "image"?, "conversations": [{"from": "human" | "gpt", "value"}]}
    test    {"question_id", "image"?, "text", "answer"}; Grounding adds "answer_bbox" and "size"

`image` is a path, or a list of paths. Each `<image>` in a question is the next one's place.

Keys are a closed list: of a key that isn't known, and of two that contradict each other, nobody
could say what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmoe.common.errors import DataError
from cmoe.common.nearest import unknown
from cmoe.data import boxes
from cmoe.data.formats.parsed import Parsed, parsed
from cmoe.data.row_rules import (
    RowRule,
    Split,
    listed,
    named,
    require_id,
    require_object,
    require_path,
    require_questions,
    require_size,
    require_text,
    shown,
)
from cmoe.data.samples import Sample, Turn

KEYS = (
    "id",
    "question_id",
    "image",
    "conversations",
    "text",
    "answer",
    "answer_bbox",
    "size",
)
"""What a row says."""

METADATA = (
    "model",
    "metadata",
    "category",
    "source",
    "type",
    "question_type",
    "answer_type",
    "dataset",
    "split",
    "image_id",
)
"""What public files in LLaVA's and CoIN's layout say beside that; it is not read."""

_KNOWN = frozenset({*KEYS, *METADATA})
_BOXED = "Grounding"  # CoIN's task of boxes
_TURN = ("from", "value")


def coin_rows(file: Path, rows: Sequence[Any], images: Path, rule: RowRule) -> Parsed:
    """What the rows of a file of CoIN's are.

    Args:
        file: Where they stand, for errors.
        rows: Unread, from the first.
        images: What picture paths are relative to.
        rule: Of their split.
    """
    placed = ((f"{file}, row {number}", row) for number, row in enumerate(rows))
    return parsed(placed, lambda _, row: read_row(row, images, rule), rule)


def read_row(row: Any, images: Path, rule: RowRule) -> Sample:
    """The sample that a row of JSON is; its picture and its box aren't looked at.

    Args:
        row: As JSON has it.
        images: What picture paths are relative to.
        rule: Of its split.

    Raises:
        DataError: It can't be used; names the key, and the row's id.
    """
    row = require_object(row)
    known = _id(row, rule.split)
    try:
        return _sample(known, row, images, rule)
    except DataError as error:
        raise named(error, known) from None


def _sample(known: str, row: Mapping[str, Any], images: Path, rule: RowRule) -> Sample:
    if not row.keys() <= _KNOWN:
        key = next(key for key in row if key not in _KNOWN)
        raise DataError(f"unknown key {shown(key)}; {unknown(key, KEYS)}")
    paths = image_paths(row)
    for path in paths:
        require_path(path)
    conversed = row.get("conversations") is not None
    asked, said = _conversation(row, rule) if conversed else asked_and_answered(row, rule)
    texts = require_questions(asked, len(paths), rule)
    return Sample(
        known,
        texts[0],
        said[0],
        tuple(images / path for path in paths),
        require_size(row.get("size")),
        tuple(map(Turn, texts[1:], said[1:])),
    )


def image_paths(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """A row's images, as it names them."""
    found = row.get("image")
    return () if found is None else tuple(found) if isinstance(found, list) else (found,)


def _id(row: Mapping[str, Any], split: Split) -> str:
    """The row's id; CoIN's scripts know test rows by `question_id` alone."""
    own, other = row.get("question_id"), row.get("id")
    if own is None and other is None:
        raise DataError(f"neither id nor question_id; has {listed(row)}")
    field = "id" if own is None and split == "train" else "question_id"
    found = require_id(other if field == "id" else own, field, row)
    if own is not None and other is not None and require_id(other, "id", row) != found:
        raise DataError(
            f"question_id is {found!r}, and id is {shown(other)}; one of them is enough"
        )
    return found


Asked = list[tuple[str, Any]]
"""Questions, each with the field that it stands in."""


def _conversation(row: Mapping[str, Any], rule: RowRule) -> tuple[Asked, list[str]]:
    """The questions of all turns, and their answers."""
    if rule.split == "test":
        raise DataError("conversations belongs to training; a test row has text and answer")
    if both := [key for key in ("text", "answer", "answer_bbox") if row.get(key) is not None]:
        raise DataError(f"both conversations and {both[0]}; a row has the one or the other")
    turns, pairs = row["conversations"], []
    if isinstance(turns, list) and turns and len(turns) % 2 == 0:
        for at in range(0, len(turns), 2):
            match turns[at], turns[at + 1]:
                case {"from": "human", "value": text}, {"from": "gpt", "value": answer}:
                    pairs.append((text, answer))
    if not pairs or 2 * len(pairs) < len(turns):
        raise DataError(
            "conversations must be turns from human and from gpt by turns, each with its value; "
            f"this is {shown(turns)}"
        )
    for at, turn in enumerate(turns):
        if len(turn) > len(_TURN):
            key = next(key for key in turn if key not in _TURN)
            raise DataError(f"conversations[{at}]: unknown key {shown(key)}; {unknown(key, _TURN)}")
    asked = [(f"conversations[{2 * at}].value", text) for at, (text, _) in enumerate(pairs)]
    said = [
        _said(answer, f"conversations[{2 * at + 1}].value", rule, at)
        for at, (_, answer) in enumerate(pairs)
    ]
    return asked, said


def asked_and_answered(row: Mapping[str, Any], rule: RowRule) -> tuple[Asked, list[str]]:
    """Question and answer of a row without a conversation."""
    answered = "answer"
    if row.get("answer_bbox") is not None:
        if not rule.boxed:
            raise DataError(f"answer_bbox belongs to {_BOXED}, and this is a row of {rule.task}")
        answered = "answer_bbox"  # CoIN scores a box against this field, where there are both
    if "text" not in row and answered not in row:
        raise DataError(f"neither conversations nor text and answer; has {listed(row)}")
    for key in ("text", answered):
        if key not in row:
            raise DataError(
                f"{key} must be text, this is None: the row has neither conversations nor text and "
                f"answer; has {listed(row)}"
            )
    answer = _said(row[answered], answered, rule, 0)
    if answered == "answer_bbox" and row.get("answer") is not None:
        _require_same_box(answer, require_text(row["answer"], "answer", "answer", rule))
    return [("text", row["text"])], [answer]


def _require_same_box(box: str, answer: str) -> None:
    """Refuse an answer that is another box than the one that is scored."""
    first, second = boxes.numbers(box), boxes.numbers(answer)
    if first is None or second is None or boxes.in_pixels(first) != boxes.in_pixels(second):
        return
    if boxes.iou(first, second) <= 0.5 and first != second:
        raise DataError(f"answer_bbox is {box[:120]}, and answer is another box, {answer[:120]}")


def _said(text: Any, field: str, rule: RowRule, turn: int) -> str:
    """An answer; of Grounding the first, which alone is judged, is a box."""
    said = require_text(text, field, "answer", rule)
    if rule.boxed and turn == 0:
        boxes.read_answer(said, field)
    return said
