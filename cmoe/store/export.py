"""A log copied for others to load: checked, and without the paths of the machine that wrote it.

The header is written last: what an interrupted export has left is no store to any reader, and the
same export finishes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from cmoe.common.hub import README
from cmoe.store.files import HEADER, Folder, StoreError, folder_at, record_name, seal, unseal
from cmoe.store.log import Record, Store

_PATH = re.compile(r"""(?<![^\s"'`(\[{,=|])(?:file://)?~?/[^\s"'`)\]},|]*""")


def export(
    source: Store,
    url: str | os.PathLike[str],
    *,
    tasks: int | None = None,
    card: str | None = None,
    **storage_options: Any,
) -> Store:
    """Copy the first `tasks` primitives of a log, or all of them, into a folder of their own.

    Data files are the same to the byte. In the header, an absolute path of the configuration or of
    the base is replaced by its last part; only where there is one, the records have other digests
    than those of `source`, as each names what stands before it.

    Args:
        source: The log; every file of it that is copied is checked.
        url: A path, `s3://bucket/prefix` or `hf://owner/name`. Nothing may be there but what this
            export has left; in a repository of the hub also an earlier export of the same log.
        tasks: How many.
        card: Markdown that becomes `README.md`; absolute paths are replaced in it, too.
        storage_options: Of s3fs.

    Raises:
        StoreError: The log has fewer tasks, one of its files is damaged, or the folder has
            something else in it.
        StorageError: The storage fails.
    """
    count = len(source) if tasks is None else tasks
    if not 1 <= count <= len(source):
        raise StoreError(f"{source.url}: has {len(source)} tasks; can't export {count}")
    records = source.records()[:count]
    out = folder_at(url, storage_options)
    header = {
        "base": asdict(source.header.base),
        "settings": source.header.settings,
        "config": source.header.config,
    }
    sealed = seal(without_paths(header))
    texts = {} if card is None else {README: without_paths_in_text(card).encode()}
    texts |= _chained(records, unseal(HEADER, sealed)["digest"])
    parts = {
        f"{r.folder}/{file.name}": (r, part) for r in records for part, file in r.files.items()
    }
    _require_nothing_else(out, source.folder, {HEADER, *texts, *parts})
    out.require_exclusive()
    contents = ((name, source.read_data(*part)) for name, part in parts.items())
    if taken := out.create(chain(contents, texts.items(), [(HEADER, sealed)])):
        raise StoreError(f"{out.url}/{taken}: is of another export; give an empty folder")
    return Store(out)


def _chained(records: Collection[Record], parent: str) -> dict[str, bytes]:
    """The files of records that follow each other, the first one behind `parent`."""
    files = {}
    for record in records:
        name = record_name(record.index)
        files[name] = seal(record.fields() | {"parent": parent})
        parent = unseal(name, files[name])["digest"]
    return files


def _require_nothing_else(out: Folder, source: Folder, names: Collection[str]) -> None:
    """Refuse a folder with files that aren't part of the export.

    Raises:
        StoreError: Names some of them.
    """
    if out.root == source.root:
        raise StoreError(f"{out.url}: is the store itself; export it to another folder")
    there = (name for name in out.names() if not name.endswith(".tmp"))
    if others := sorted(n for n in there if n not in names):
        shown = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        raise StoreError(f"{out.url}: has something else in it ({shown}); give an empty folder")


# What a machine's paths are replaced by


def without_paths(value: Any) -> Any:
    """A JSON value in which the last part of every absolute path stands for the path."""
    if isinstance(value, Mapping):
        return {name: without_paths(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~/", "file:///")):
        return PurePosixPath(value).name or value
    return value


def without_paths_in_text(text: str) -> str:
    """A text in which the last part of every absolute path stands for the path."""
    return _PATH.sub(lambda found: PurePosixPath(found[0]).name or found[0], text)
