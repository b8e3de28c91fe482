"""Whether a row can be used: one rule for reading, preparing, planning and scoring.

A row is one of a file in any of the `formats`, or a sample that was prepared from one. What
can't be used is a `DataError`, whatever the file holds; the caller says in which file and row.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from reprlib import Repr
from typing import Any, Literal

from cmoe.common.errors import DataError
from cmoe.data import boxes
from cmoe.data.boxes import BOXED, Size
from cmoe.data.samples import PLACEHOLDER, Sample, name_of
from cmoe.data.settings import SCORERS
from cmoe.data.texts import TextRule, is_blank

Split = Literal["train", "test"]

_LARGEST_SIDE = 2**31 - 1  # pixels: what Parquet's rows have room for
_LARGEST_ID = 10**100

_ANY_TEXT = TextRule()
_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 120
_short.maxlevel = 3


def shown(value: Any) -> str:
    """A value for an error: short, whatever it is."""
    return _short.repr(value)


def listed(keys: Iterable[str]) -> str:
    """An object's keys for an error."""
    return ", ".join(key if key.isprintable() else ascii(key) for key in keys)[:200]


@dataclass(frozen=True)
class BaseRule:
    """What a base's rows are held to.

    Attributes:
        tokens: Of the base (`reserved_tokens`), which no text may hold.
        require_shown: Raises a DataError for a sample whose images the base doesn't take, or would
            be shown elsewhere; None where no base is known.
    """

    tokens: tuple[str, ...] = ()
    require_shown: Callable[[Sample], None] | None = None


@dataclass(frozen=True)
class RowRule:
    """What a split's rows are held to.

    Attributes:
        task: The task's name.
        split: `train` rows are conversations or a question with its answer; `test` rows are the
            latter, as CoIN's own scripts read them.
        base: What the rows are for.
        scorer: The name of what judges the task; "" is the one registered for the task's name.
    """

    task: str
    split: Split
    base: BaseRule = field(default_factory=BaseRule)
    scorer: str = ""
    texts: TextRule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", TextRule(self.base.tokens))

    @property
    def boxed(self) -> bool:
        """Whether the answers are boxes."""
        return (self.scorer or SCORERS.get(self.task)) in BOXED


def require_object(row: Any) -> Mapping[str, Any]:
    """A row, if it is an object.

    Raises:
        DataError: It is something else.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"an object is needed, this is {type(row).__name__}: {shown(row)}")
    return row


class Ids:
    """The ids of a split. Those of a test stand once; training rows may share one.

    LLaVA's files repeat an `id` that is the picture's.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self._rows: dict[str, int] = {}

    def add(self, known: str, row: int) -> None:
        """Take a row's id.

        Raises:
            DataError: Another row of a test has it.
        """
        if self._split == "test" and (first := self._rows.setdefault(known, row)) != row:
            raise DataError(f"id {known!r} is row {first}'s already; no id of a test stands twice")


def named(error: DataError, known: str) -> DataError:
    """An error that also names the row's id."""
    return DataError(f"{error} (id {known!r})")


def require_id(value: Any, field: str, row: Mapping[str, Any]) -> str:
    """An id as text: CoIN's are numbers in some files and text in others, and join each other.

    Args:
        value: The id.
        field: Its key.
        row: Where it stands.

    Raises:
        DataError: It is no whole number, and no text that can be read.
    """
    if type(value) is int and abs(value) < _LARGEST_ID:
        return str(value)
    if type(value) is str and value.isprintable() and value.strip():
        return value
    raise DataError(
        f"{field} must be a whole number or text that isn't blank, this is {shown(value)}; has "
        f"{listed(row)}"
    )


def require_path(image: Any) -> None:
    """Refuse what can't be a picture's path below `data.images`; it isn't looked for."""
    if (
        type(image) is not str
        or not image.strip()
        or image.startswith("/")
        or ".." in image.split("/")
        or _ANY_TEXT.wrong(image)
    ):
        raise DataError(f"image must be a path below data.images, this is {shown(image)}")


def require_size(size: Any) -> Size | None:
    """A picture's width and height, where a row states them.

    Raises:
        DataError: It is something else.
    """
    if size is None:
        return None
    match size:
        case [int(width), int(height)] if all(
            type(n) is int and 0 < n <= _LARGEST_SIDE for n in (width, height)
        ):
            return width, height
    raise DataError(f"size must be width and height, in pixels, this is {shown(size)}")


def require_text(
    text: Any,
    field: str,
    part: Literal["question", "answer"],
    rule: RowRule,
    *,
    images: bool = False,
) -> str:
    """A question or an answer.

    Args:
        text: As the row has it.
        field: Where it stands in the row.
        part: Which of the two it is.
        rule: Of the row's split.
        images: Whether it may have places of images.

    Raises:
        DataError: It is no text, empty, or holds what is no text.
    """
    if type(text) is not str:
        raise DataError(f"{field} must be text, this is {shown(text)}")
    if is_blank(text):
        raise DataError(
            f"question and answer must be text, the {part} not empty; {field} is {shown(text)}"
        )
    if wrong := rule.texts.wrong(text.replace(PLACEHOLDER, " ")):
        raise DataError(f"{field} {wrong}")
    if PLACEHOLDER in text and not images:
        raise DataError(f"{field} holds {PLACEHOLDER!r}, which stands for a picture")
    return text


def require_questions(asked: Sequence[tuple[str, Any]], images: int, rule: RowRule) -> list[str]:
    """The questions of a conversation, with the places of its images as a `Sample` has them.

    A single image that stands at the beginning or the end of the first question, or on a line of
    its own there, stands in front of it, where LLaVA moves it. So do several at its beginning.

    Args:
        asked: The field of each question, and what the row has there.
        images: Of the row.
        rule: Of the row's split.

    Raises:
        DataError: One is no text, is empty, or holds what is no text; or there are more or fewer
            places than images.
    """
    texts: list[str] = []
    for where, text in asked:
        if type(text) is str:
            require_text(text.replace(PLACEHOLDER, " "), where, "question", rule)
        texts.append(require_text(text, where, "question", rule, images=True).strip())
    places = [text.count(PLACEHOLDER) for text in texts]
    if not sum(places):
        return texts
    if sum(places) != images:
        so_far = accumulate(places)  # the first place too many, or the last where there are too few
        at = next((n for n, count in enumerate(so_far) if count > images), len(places) - 1)
        where, _ = asked[at]
        if not images:
            raise DataError(f"{where} holds {PLACEHOLDER!r}, and the row has no image")
        raise DataError(
            f"{where} holds {PLACEHOLDER!r}, {sum(places)} in all, and the row's images are "
            f"{images}; each needs its place, or none says one"
        )
    if places[0] == images:
        texts[0] = _without_front(texts[0], images)
    return texts


def _without_front(text: str, images: int) -> str:
    """A question without places that it needn't say."""
    *before, behind = text.split(PLACEHOLDER)
    if not any(part.strip() for part in before):
        return behind.strip()
    if images > 1 or not _apart(before[0], behind):
        return text
    return (before[0] + behind).strip()


def _apart(before: str, behind: str) -> bool:
    """Whether what stands between the two is at the end, or has a line of its own."""
    line = before.rpartition("\n")[2] + behind.partition("\n")[0]
    return not behind.strip() or not line.strip()


# Samples, however they were stored


def require_usable(sample: Sample, rule: RowRule) -> None:
    """Hold a prepared sample to what its row is held to.

    Raises:
        DataError: It can't be used; names the field, and the sample's id.
    """
    require_id(sample.id, "question_id", {"question_id": sample.id})
    try:
        asked = [("text", sample.text)]
        asked += [(f"further[{n}].text", turn.text) for n, turn in enumerate(sample.further)]
        require_questions(asked, len(sample.images), rule)
        require_text(sample.answer, "answer", "answer", rule)
        for number, turn in enumerate(sample.further):
            require_text(turn.answer, f"further[{number}].answer", "answer", rule)
        for number, answer in enumerate(sample.answers):
            require_text(answer, f"answers[{number}]", "answer", rule)
        require_size(None if sample.size is None else list(sample.size))
        if rule.boxed:
            boxes.checked(sample, lambda: None)
        if rule.base.require_shown is not None:
            rule.base.require_shown(sample)
    except DataError as error:
        raise named(error, sample.id) from None


def require_images(samples: Iterable[Sample]) -> None:
    """Refuse samples one of whose image files isn't there.

    Raises:
        DataError: Names the sample and the path.
    """
    for sample in samples:
        for image in sample.images:
            if isinstance(image, Path):
                try:
                    require_picture(image)
                except DataError as error:
                    raise named(error, sample.id) from None


def require_picture(file: Path) -> None:
    """Refuse a picture that isn't there, or is no regular file; its content isn't read.

    Raises:
        DataError: Names the path.
    """
    try:
        if stat.S_ISREG(os.stat(file).st_mode):
            return
        why = "is missing: this is no regular file"
    except FileNotFoundError:
        why = "is missing"
    except (OSError, ValueError) as error:
        why = f"can't be read: {getattr(error, 'strerror', None) or error}"
    raise DataError(f"{name_of(file)} {why}; see data.images")
