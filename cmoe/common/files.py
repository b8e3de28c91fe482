"""Files that are whole or not there, and files that only grow."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from cmoe.common.storage import StorageError, explained, filesystem
from cmoe.common.storage_errors import WRITTEN

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


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into; it becomes `folder` when the body ends well, or vanishes if not.

    Raises:
        StorageError: Something is there, or it can't be written.
    """
    beside = folder.with_name(f"{folder.name}.{uuid4().hex}.tmp")
    with explained(folder, WRITTEN):
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise StorageError(f"{folder}: something is there; give an empty folder or a new one")
        beside.mkdir(parents=True)
    try:
        yield beside
        with explained(folder, WRITTEN):
            for file in (each for each in beside.rglob("*") if each.is_file()):
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def temporary_folder() -> str:
    """Where temporary files go; made again where somebody has cleaned it away meanwhile.

    Raises:
        StorageError: It can't be made.
    """
    place = Path(tempfile.gettempdir())
    with explained(place, WRITTEN):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return str(place)


def publish(content: bytes | Path, url: str) -> None:
    """Put a file where it belongs, whole or not at all; a folder for it is made."""
    from fsspec.implementations.local import LocalFileSystem

    fs, path = filesystem(url)
    with explained(url, WRITTEN):
        if isinstance(fs, LocalFileSystem):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with whole(Path(path)) as beside:
                if isinstance(content, Path):
                    fs.put_file(str(content), str(beside))
                else:
                    beside.write_bytes(content)
        elif isinstance(content, Path):  # an object store shows an upload once it is complete
            fs.put_file(str(content), path)
        else:
            fs.pipe_file(path, content)


class Log:
    """A file of lines that nothing depends on: where it can't be written, work goes on without it.

    Args:
        file: It is added to.
        say: Told once if it can't be written to any more.

    Raises:
        StorageError: It can't be opened.
    """

    def __init__(self, file: Path, say: Callable[[str], object]) -> None:
        self._file, self._say = file, say
        self._told = False
        with explained(file, WRITTEN):
            self._lines = open(file, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, text: str) -> None:
        """Add a text, to be read at once; what couldn't be written before comes with it."""
        try:
            with explained(self._file, WRITTEN):
                self._lines.write(text)
                self._lines.flush()
        except StorageError as error:
            if not self._told:
                self._told = True
                self._say(f"{error}; the run goes on without")

    def close(self) -> None:
        with suppress(OSError):  # has been told
            self._lines.close()
