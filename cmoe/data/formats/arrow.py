"""Rows of data sets in Arrow, through `datasets`: of the hub, of Parquet, of `save_to_disk`.

Nothing but their own files is run: no script of a data set, and no pickle. Rows are mapped into
memory; pictures stay where they are until they are opened.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from cmoe.common.errors import DataError
from cmoe.data.formats.parsed import Placed
from cmoe.data.samples import EmbeddedPicture, arrow_table
from cmoe.data.shards import find_root

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # files of `save_to_disk`

Rows = tuple[Placed, tuple[str, ...]]
"""Rows, and the columns that all of them have."""


def is_pattern(path: Path) -> bool:
    """Whether a path is a pattern of several, and none itself."""
    return glob.has_magic(path.name) and not path.exists()


def hub_rows(place: str, wanted: Collection[str]) -> Rows:
    """The rows of a split of a data set on the hub, or in its cache.

    Args:
        place: As `OwnTask` has it.
        wanted: Columns that are read.

    Raises:
        DataError: It is in neither, has no such split, or the place says none.
    """
    name, _, query = place.partition("?")
    asked = dict(parse_qsl(query, keep_blank_values=True))
    if not asked.get("split") or asked.keys() - {"split", "name"}:
        raise DataError(
            f"{place}: which split is needed: {name}?split=train, and &name=... where the data set "
            "has several configurations"
        )
    folder = find_root(name)

    def load() -> Any:
        from datasets import load_dataset

        return load_dataset(folder, asked.get("name"), split=asked["split"])

    return _rows(place, _loaded(place, load), wanted)


def arrow_rows(path: Path, wanted: Collection[str]) -> Rows:
    """The rows of a Parquet file, of all those of a folder or a pattern, or of `save_to_disk`.

    Args:
        path: Of them.
        wanted: Columns that are read.

    Raises:
        DataError: There are none, or they can't be read.
    """
    if (path / _SAVED_SPLITS).is_file():
        splits = ", ".join(sorted(f.parent.name for f in path.glob(f"*/{_SAVED}")))
        raise DataError(f"{path}: has several splits, each in a folder: {splits}; name one of them")

    def load() -> Any:
        from datasets import Dataset, load_from_disk

        if (path / _SAVED).is_file():
            return load_from_disk(str(path))
        return Dataset.from_parquet([glob.escape(file) for file in files])

    files = _parquet(path)
    if not files and not (path / _SAVED).is_file():
        raise DataError(f"{path}: has no .parquet file, and is no folder of `save_to_disk`")
    return _rows(str(path), _loaded(str(path), load), wanted)


def _parquet(path: Path) -> list[str]:
    if path.is_dir():
        return sorted(map(str, path.glob("*.parquet")))
    if is_pattern(path):
        return sorted(glob.glob(str(Path(glob.escape(str(path.parent))) / path.name)))
    if not path.is_file():
        raise DataError(f"{path}: can't be read: no such file")
    return [str(path)]


def _loaded(place: str, load: Callable[[], Any]) -> Any:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    try:
        found = load()
    except Exception as error:  # of pyarrow, of datasets, of the system: whatever a file provokes
        told = " ".join(f"{type(error).__name__}: {error}".split())[:600]
        raise DataError(f"{place}: can't be read as a data set: {told}") from error
    if not isinstance(found, Dataset):
        raise DataError(f"{place}: one split is needed, this is {type(found).__name__}")
    return found


def _rows(place: str, found: Any, wanted: Collection[str]) -> Rows:
    """A data set's rows, read from its Arrow files."""
    files = [each["filename"] for each in found.cache_files]
    if found._indices is not None or sum(arrow_table(f).num_rows for f in files) != len(found):
        raise DataError(
            f"{place}: a whole split is needed; data.train_samples and data.test_samples take the "
            "first of its rows"
        )
    columns = tuple(found.column_names)
    return _of_files(place, files, [name for name in columns if name in wanted]), columns


def _of_files(place: str, files: Sequence[str], columns: Sequence[str]) -> Placed:
    before = 0
    for file in files:
        table = arrow_table(file)
        start = 0
        for batch in table.select(columns).to_batches():
            cells = {
                name: _column(batch.column(name), file, name, start, before) for name in columns
            }
            for number in range(batch.num_rows):
                row = {name: values[number] for name, values in cells.items()}
                where = f"{place}, row {before + start + number}"
                yield where, {name: cell for name, cell in row.items() if cell is not None}
            start += batch.num_rows
        before += table.num_rows


def _column(array: Any, file: str, name: str, start: int, before: int) -> list[Any]:
    """A column's values; in place of pictures that it holds, where they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    listed = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
    if not _holds_pictures(array.type.value_type if listed else array.type):
        return [_bare(value) for value in array.to_pylist()]
    flat = _cells(array.flatten() if listed else array)

    def picture(cell: tuple[int | None, str | None], row: int, index: int | None) -> Any:
        size, path = cell
        if size is None:
            return path
        called = f"{before + start + row}" + ("" if index is None else f".{index}")
        called += f" {path}" if path else ""
        return EmbeddedPicture(file, name, start + row, index, size, called)

    if not listed:
        return [picture(cell, row, None) for row, cell in enumerate(flat)]
    found: list[Any] = []
    cells = iter(flat)
    for row, length in enumerate(pc.list_value_length(array).to_pylist()):
        some = [picture(next(cells), row, index) for index in range(length or 0)]
        found.append(None if length is None else some)
    return found


def _holds_pictures(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "bytes" in [kind.field(n).name for n in range(kind.num_fields)]
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _cells(array: Any) -> list[tuple[int | None, str | None]]:
    """Of pictures the size of what is held, and the path that is said."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(array.type):
        return [(size, None) for size in pc.binary_length(array).to_pylist()]
    names = [array.type.field(n).name for n in range(array.type.num_fields)]
    data = pc.struct_field(array, "bytes")
    binary = pa.types.is_binary(data.type) or pa.types.is_large_binary(data.type)
    sizes = pc.binary_length(data).to_pylist() if binary else [None] * len(data)
    paths = pc.struct_field(array, "path").to_pylist() if "path" in names else [None] * len(sizes)
    return list(zip(sizes, paths, strict=True))


def _bare(value: Any) -> Any:
    """A value without the keys that other rows' values have, which are null here."""
    if isinstance(value, Mapping):
        return {key: _bare(each) for key, each in value.items() if each is not None}
    return [_bare(each) for each in value] if isinstance(value, list) else value
