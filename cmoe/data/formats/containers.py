"""Files that hold rows: JSON, JSON lines, CSV, TSV, and what `datasets` reads.

Which it is, is told by a file's suffix and its first bytes.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmoe.common.errors import DataError
from cmoe.common.storage import is_remote
from cmoe.data.formats.arrow import arrow_rows, hub_rows, is_pattern
from cmoe.data.formats.documents import parse_document, read_file
from cmoe.data.formats.parsed import Placed
from cmoe.data.row_rules import shown
from cmoe.data.shards import HUB

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Container:
    """A file's rows.

    Attributes:
        kind: What the file is.
        rows: Of them, from the first; each is read when it is asked for.
        columns: That all rows have, where the file says so.
    """

    kind: str
    rows: Placed
    columns: tuple[str, ...] = ()


def open_rows(root: Path, file: str, wanted: Collection[str]) -> Container:
    """The rows of a file.

    Args:
        root: What it is relative to.
        file: A path, a pattern of Parquet files, or a data set of the hub, as `OwnTask` has it.
        wanted: Columns that are read, where the file can leave others unread.

    Raises:
        DataError: It is missing, or of no kind that is read.
    """
    if file.startswith(HUB):
        return Container("datasets", *hub_rows(file, wanted))
    if is_remote(file):
        raise DataError(
            f"{file}: a path below data.root, or {HUB}OWNER/NAME?split=SPLIT is needed; nothing "
            "else is fetched"
        )
    path = root / file
    suffix = path.suffix.lower()
    if path.is_dir() or is_pattern(path) or suffix == ".parquet":
        return Container("datasets", *arrow_rows(path, wanted))
    data = read_file(path)
    if data.startswith(b"PAR1"):
        return Container("datasets", *arrow_rows(path, wanted))
    if suffix in _SEPARATORS:
        columns, rows = _table(path, data, _SEPARATORS[suffix])
        return Container(suffix[1:].upper(), rows, columns)
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"{":
        return Container("JSONL", _lines(path, data))
    if start == b"[" or suffix in _JSON:
        return Container("JSON", _list(path, data))
    raise DataError(
        f"{path}: of no kind that is read: .json, .jsonl, .csv, .tsv, .parquet, or a folder of "
        "`save_to_disk`"
    )


def _list(file: Path, data: bytes) -> Placed:
    rows = parse_document(data, str(file))
    if not isinstance(rows, list):
        raise DataError(f"{file}: a list of rows is needed, or a row on each line")
    return ((f"{file}, row {number}", row) for number, row in enumerate(rows))


def _lines(file: Path, data: bytes) -> Placed:
    number = 0
    # Not `splitlines`: what parts lines for Unicode may stand within a text.
    for line, text in enumerate(data.split(b"\n"), start=1):
        if not text.strip():
            continue
        where = f"{file}, row {number}, line {line}"
        try:
            yield where, parse_document(text, "the line")
        except DataError as error:
            yield where, error
        number += 1


def _table(file: Path, data: bytes, separator: str) -> tuple[tuple[str, ...], Placed]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not text in UTF-8: {error}") from error
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a cell may hold a picture
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = tuple(next(lines, ()))
    except csv.Error as error:
        raise DataError(f"{file}, line 1: {error}") from error
    twice = [name for name in header if header.count(name) > 1]
    if not header or twice:
        has = f"has {shown(twice[0])} twice" if twice else "is empty"
        raise DataError(f"{file}, line 1: the names of the columns are needed; it {has}")
    return header, _cells(file, header, lines)


def _cells(file: Path, header: tuple[str, ...], lines: Any) -> Iterator[tuple[str, Any]]:
    number = 0
    while True:
        where = f"{file}, row {number}, line {lines.line_num + 1}"
        try:
            cells = next(lines, None)
        except csv.Error as error:
            yield where, DataError(f"not a row as it has to be: {error}")
            return
        if cells is None:
            return
        if not cells:
            continue
        if len(cells) != len(header):
            yield where, DataError(f"has {len(cells)} cells, and the first line {len(header)}")
        else:
            yield where, {name: cell for name, cell in zip(header, cells, strict=True) if cell}
        number += 1
