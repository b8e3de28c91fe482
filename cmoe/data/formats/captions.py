"""COCO's files of captions, as the reference answers of a test's rows.

Benchmarks keep an image's several captions beside their test rows, and number the images by the
rows' order: `image_id` 1 is of the first row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmoe.common.errors import DataError
from cmoe.data.formats.documents import read_document
from cmoe.data.row_rules import shown


class Captions:
    """The captions of a file, by the rows that they belong to.

    Args:
        file: `{"annotations": [{"image_id": 1, "caption": "..."}]}`; further keys aren't read.

    Raises:
        DataError: It can't be read, or holds something else.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._of = file, dict[int, list[str]]()
        found = read_document(file)
        listed = found.get("annotations") if isinstance(found, Mapping) else None
        if not isinstance(listed, list):
            raise DataError(f'{file}: needs "annotations", a list of captions by their image_id')
        for number, each in enumerate(listed):
            match each:
                case {"image_id": int(image), "caption": str(caption)} if type(image) is int:
                    self._of.setdefault(image, []).append(caption)
                case _:
                    raise DataError(
                        f"{file}, annotations[{number}]: image_id, a whole number, and caption, "
                        f"text, are needed, this is {shown(each)}"
                    )

    def answered(self, number: int, kind: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row with its captions in the place of its own answers.

        Args:
            number: Of the row, from 0.
            kind: Its format.
            row: It.

        Raises:
            DataError: The file has no caption for it, or its format has no place for several.
        """
        if kind != "text":
            raise DataError(f"captions are of rows with text, and this one's format is {kind}")
        if number + 1 not in self._of:
            raise DataError(f"{self._file} has no caption with image_id {number + 1}")
        own = {key: value for key, value in row.items() if key not in ("answer", "answers")}
        return {**own, "answers": self._of[number + 1]}
