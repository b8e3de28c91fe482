"""Rows on their way to samples: where each stands, and what it is or why it can't be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cmoe.common.errors import DataError
from cmoe.data import boxes
from cmoe.data.boxes import Size
from cmoe.data.row_rules import Ids, RowRule, named, require_picture
from cmoe.data.samples import Sample

Placed = Iterable[tuple[str, Any]]
"""Rows of a file: where each stands, and what was read there, or the error instead."""

Parsed = Iterator[tuple[str, Sample | DataError]]
"""The same rows as samples. Their pictures and boxes weren't looked at."""


def parsed(rows: Placed, read: Callable[[int, Any], Sample], rule: RowRule) -> Parsed:
    """Read every row, whatever becomes of its neighbours.

    Args:
        rows: From the first.
        read: Makes a sample of a row's number and the row; what it raises is kept.
        rule: Of their split.
    """
    ids = Ids(rule.split)
    for number, (where, row) in enumerate(rows):
        if isinstance(row, DataError):
            yield where, row
            continue
        try:
            sample = read(number, row)
            ids.add(sample.id, number)
            _require_shown(sample, rule)
        except DataError as error:
            yield where, error
            continue
        yield where, sample


def _require_shown(sample: Sample, rule: RowRule) -> None:
    if rule.base.require_shown is None:
        return
    try:
        rule.base.require_shown(sample)
    except DataError as error:
        raise named(error, sample.id) from None


def usable(
    found: Parsed, rule: RowRule, size_of: Callable[[Sample], Size | None], *, pictures: bool = True
) -> Iterator[Sample]:
    """All samples, where every row can be used.

    Args:
        found: The rows.
        rule: Of their split.
        size_of: The size of a sample's picture, asked where a box needs it; None if not known.
        pictures: Whether each picture must be there.

    Raises:
        DataError: One of them can't be used; names the file, the row and its id.
    """
    for where, sample in found:
        try:
            if isinstance(sample, DataError):
                raise sample
            yield _with_picture(sample, rule, size_of, needed=pictures)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error


def _with_picture(
    sample: Sample, rule: RowRule, size_of: Callable[[Sample], Size | None], *, needed: bool
) -> Sample:
    try:
        for image in sample.images if needed else ():
            if isinstance(image, Path):
                require_picture(image)
        return boxes.checked(sample, lambda: size_of(sample)) if rule.boxed else sample
    except DataError as error:
        raise named(error, sample.id) from None
