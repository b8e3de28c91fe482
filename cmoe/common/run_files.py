"""Files of a run's folder, read back: each is whole and of the right kind, or an error names it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from cmoe.common.errors import DataError
from cmoe.common.files import whole
from cmoe.common.parsing import parse_json, parse_yaml

_SEAL = "cmoe"  # of a Parquet file's metadata


class RunFileError(DataError):
    """A file of a run's folder is lost or damaged; names it, and says how the run can go on."""


def read_object(file: Path, remedy: str, *keys: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        file: Where it is.
        remedy: What helps if it can't be used.
        keys: That it has to have.

    Raises:
        RunFileError: It is lost or damaged.
    """
    return _mapping(file, parse_json, remedy, keys)


def read_settings(file: Path, remedy: str) -> dict[str, Any]:
    """A YAML mapping; arguments and errors as of `read_object`."""
    return _mapping(file, lambda data: parse_yaml(data.decode()), remedy, ())


def _mapping(
    file: Path, parse: Callable[[bytes], Any], remedy: str, keys: Sequence[str]
) -> dict[str, Any]:
    try:
        found = parse(file.read_bytes())
    except FileNotFoundError as error:
        raise RunFileError(f"{file}: lost; {remedy}") from error
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split()).rstrip(".")  # YAML's is of several lines
        raise RunFileError(f"{file}: damaged: {cause}; {remedy}") from error
    if not isinstance(found, dict):
        raise RunFileError(f"{file}: damaged: a {type(found).__name__}, no mapping; {remedy}")
    if missing := [key for key in keys if key not in found]:
        raise RunFileError(f"{file}: damaged: has no {', '.join(missing)}; {remedy}")
    return found


def write_json(file: Path, value: Any) -> None:
    """Write a value, or leave what was there."""
    with whole(file) as beside:
        beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_table(
    file: Path, columns: Mapping[str, list[Any]], types: Mapping[str, Any], said: Any = None
) -> None:
    """Write a Parquet file, whole or not at all, with a digest of what it holds.

    Args:
        file: Where.
        columns: By name.
        types: Arrow's, by column; text where there is none.
        said: What else is to be kept, in JSON's types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {n: pa.array(v, types.get(n, pa.string())) for n, v in columns.items()}
    table = pa.table(arrays)
    seal = {"said": said, "digest": digest_of(table.to_pydict(), said)}
    with whole(file) as beside:
        pq.write_table(table.replace_schema_metadata({_SEAL: json.dumps(seal)}), beside)


def read_table(
    file: Path, names: Sequence[str], remedy: Callable[[], str]
) -> tuple[dict[str, list[Any]], Any]:
    """The columns of a Parquet file, and what else was kept in it, as `write_table` wrote them.

    Args:
        file: Where it is.
        names: Of the columns.
        remedy: Says what helps if it can't be used.

    Raises:
        RunFileError: It is lost or damaged, or has other columns.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
        columns: dict[str, list[Any]] = table.to_pydict()
        kept = (table.schema.metadata or {}).get(_SEAL.encode())
        seal = parse_json(kept) if kept else {}
        same = bool(seal) and seal["digest"] == digest_of(columns, seal["said"])
    except FileNotFoundError as error:
        raise RunFileError(f"{file}: lost; {remedy()}") from error
    except Exception as error:  # whatever comes of decoding what isn't whole
        cause = " ".join(str(error).split()).rstrip(".")
        raise RunFileError(f"{file}: damaged: {cause}; {remedy()}") from error
    if not seal or set(columns) != set(names):
        raise RunFileError(
            f"{file}: has columns {', '.join(columns)}, not {', '.join(names)} and their digest; "
            f"where an earlier version began this run, remove all of {file.parent}, else {remedy()}"
        )
    if not same:
        raise RunFileError(f"{file}: damaged: its digest is another; {remedy()}")
    return columns, seal["said"]


def digest_of(*values: Any) -> str:
    """Of values in JSON's types, in whatever order their keys stand."""
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
