"""Files of JSON, read whole; what can't be read or parsed is an error that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmoe.common.errors import DataError
from cmoe.common.parsing import parse_json


def read_file(file: Path) -> bytes:
    """A regular file's bytes.

    Raises:
        DataError: It is missing, no regular file, or can't be read.
    """
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise DataError(f"{file}: no regular file")  # a pipe would be waited for
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: can't be read: {error.strerror}") from error


def parse_document(text: bytes, where: str) -> Any:
    """The value of a JSON document.

    Args:
        text: UTF-8.
        where: It stands, for errors.

    Raises:
        DataError: It isn't JSON, or a key stands twice in one object.
    """
    try:
        return parse_json(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not JSON, which is UTF-8: {error}") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON as it has to be: {error}") from error


def read_document(file: Path) -> Any:
    """The value of a file of JSON; errors as in `read_file` and `parse_document`."""
    return parse_document(read_file(file), str(file))
