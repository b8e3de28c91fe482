"""Files that are whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cmoe.storage import WRITTEN, explained

WORKING_COPIES = "working_dir_files"  # Ray's folder for what `--working-dir` brings


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path to write to; it becomes `file` when the body ends well, and vanishes if it doesn't.

    Raises:
        StorageError: It can't be written.
    """
    beside = file.with_name(f"{file.name}.{uuid4().hex}.tmp")
    with explained(file, WRITTEN):
        try:
            yield beside
            beside.rename(file)
        finally:
            beside.unlink(missing_ok=True)
