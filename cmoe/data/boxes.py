"""Boxes as text: `[left, top, right, bottom]`, in parts of the picture or in pixels.

CoIN's are in parts of the picture. One rule says what may stand as such an answer, for reading,
preparing and scoring.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from cmoe.common.errors import DataError
from cmoe.data.samples import Sample

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

Size = tuple[int, int]
"""Width and height of a picture, in pixels."""

BOXED = ("box", "iou")
"""The scorers by which answers are boxes."""

_NUMBER = r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?"
_NUMBERS = re.compile(_NUMBER, re.IGNORECASE)
_ANSWER = re.compile(rf"\s*\[?(?:\s*{_NUMBER}\s*,){{3}}\s*{_NUMBER}\s*\]?\s*", re.IGNORECASE)
_ROUNDED = 1.0  # pixels that a side may be off where a picture was made smaller


def numbers(text: str) -> Box | None:
    """The text's four numbers, whatever stands between them; None if there are more or fewer."""
    found = [float(number) for number in _NUMBERS.findall(text)]
    if len(found) != 4:
        return None
    left, top, right, bottom = found
    return left, top, right, bottom


def fractions(text: str, size: Size | None) -> Box | None:
    """A box in parts of the picture.

    Four numbers in [0, 1] are that already, others are pixels; None if they are outside.
    """
    box = numbers(text)
    if box is not None and size is not None and max(box) > 1:
        width, height = size
        box = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    return box if box is not None and all(0 <= part <= 1 for part in box) else None


def iou(box: Box, other: Box) -> float:
    """Intersection over union, in [0, 1]; 0 where a box is empty or its corners are swapped."""
    width = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
    union = _area(box) + _area(other) - width * height
    return width * height / union if union > 0 else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def in_pixels(box: Box) -> bool:
    """Whether an answer's box is in pixels: a number below 2 is a part of the picture."""
    return max(box) >= 2


def read_answer(text: str, field: str = "answer") -> Box:
    """The box of an answer: four numbers between commas, with or without brackets.

    Args:
        text: The answer.
        field: What an error calls it.

    Raises:
        DataError: It is no such box.
    """
    box = numbers(text) if _ANSWER.fullmatch(text) else None
    if box is None:
        raise DataError(
            f"{field} must be a box of four numbers, [left, top, right, bottom], this is "
            f"{text[:120]!r}"
        )
    return box


def checked(sample: Sample, own: Callable[[], Size | None]) -> Sample:
    """A sample of boxes whose answer is a box in its picture.

    A box in pixels needs the picture's size: the row's, or else the picture's own, which the sample
    then has. The row's is the original picture's, and the picture may have been made smaller since:
    the two need the same proportions.

    Args:
        sample: With its answer.
        own: Width and height of its picture; None where that can't be known.

    Raises:
        DataError: The answer isn't a box, or leaves the picture; its corners are swapped; or the
            size is missing or another picture's.
    """
    box = read_answer(sample.answer)
    width, height = 1, 1
    if in_pixels(box):
        sample = replace(sample, size=_size(sample.size, own()))
        assert sample.size is not None
        width, height = sample.size
    left, top, right, bottom = box
    if 0 <= left <= right <= width and 0 <= top <= bottom <= height:
        return sample
    raise DataError(
        f"box {sample.answer.strip()[:120]} leaves its picture of {width} x {height}, or its "
        "corners are swapped"
    )


def _size(stated: Size | None, own: Size | None) -> Size:
    if stated is None and own is None:
        raise DataError(
            "answer is a box in pixels, and the row has no size; give size, [width, height] of "
            "its picture, or a box in parts of the picture"
        )
    if stated is not None and own is not None and not _same_shape(stated, own):
        raise DataError(
            f"size is {list(stated)}, but the picture is {own[0]} x {own[1]}, of other "
            "proportions; size is [width, height] of the picture"
        )
    size = stated or own
    assert size is not None
    return size


def _same_shape(stated: Size, own: Size) -> bool:
    """Whether a picture can have been resized from one size to the other, rounding aside."""
    (width, height), (wide, high) = stated, own
    return (
        abs(width * high / height - wide) <= _ROUNDED
        or abs(height * wide / width - high) <= _ROUNDED
    )
