"""A log copied record by record, as it was written: at any moment the copy is a shorter log.

The header comes first, then each primitive's files and its record. So a copy that was killed is
gone on with, one of a log that grows is made longer, and two at a time do each other no harm.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from typing import Any

from cmoe.common.remote.hub import README
from cmoe.store.files import HEADER, Folder, folder_at, record_name
from cmoe.store.log import Record, Store, StoreError
from cmoe.store.schema import SCHEMA, digest_of, newest, seal, stamped

Change = Callable[[dict[str, Any]], dict[str, Any]]
"""From a header's or a record's fields, as they were written, to those that a copy has."""


def same(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that stay as they are: every file of the copy has the same bytes."""
    return fields


def upgraded(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields in the newest version, written by this program where they were in an older one."""
    return fields if fields["schema"] == SCHEMA else stamped(newest(fields))


def copy(
    source: Store,
    url: str | os.PathLike[str],
    *,
    change: Change = same,
    show: Callable[[str], object] = print,
    **storage_options: Any,
) -> Store:
    """Copy a log as far as it goes, also what is appended meanwhile.

    One data file at a time is in memory. Each that is copied is checked against its record.

    Args:
        source: The log.
        url: A path, `s3://bucket/prefix` or `hf://owner/name`: empty, or with an earlier copy.
        change: Made to the header and to every record, which are chained anew then.
        show: Told of each primitive that was copied.
        storage_options: Of s3fs.

    Returns:
        The copy, which may be longer than the source: then nothing was copied.

    Raises:
        StoreError: A file of the source is damaged, or another log or something else lies there.
        StorageError: A storage fails.
    """
    out = folder_at(url, storage_options)
    if HEADER not in out.names():
        require_nothing_else(out, source.folder, {README})
    elif out.root == source.folder.root:
        raise StoreError(f"{out.url}: is the store itself; give another folder")
    out.require_exclusive()
    header = seal(change(source.written()))
    out.create([(HEADER, header)], new=HEADER)
    target, parent = Store(out), digest_of(header)
    _require_same(source, target, HEADER, target.header.digest, parent)
    fresh = source.records()
    while fresh:
        for record in fresh:
            name = record_name(record.index)
            sealed = seal({**change(source.written(record)), "parent": parent})
            if record.index >= len(target):
                files = chain(data_files(source, record), [(name, sealed)])
                if (taken := out.create(files, new=name)) not in (None, name):
                    raise StoreError(
                        f"{out.url}/{taken}: isn't the file of {source.url}; remove it, or give an "
                        "empty folder"
                    )
                target.refresh()
                show(f"{out.url}/{name}: {record.task}")
            parent = digest_of(sealed)
            _require_same(source, target, name, target.records()[record.index].digest, parent)
        fresh = source.refresh()
    return target


def _require_same(source: Store, target: Store, name: str, found: str, expected: str) -> None:
    if found != expected:
        raise StoreError(
            f"{target.url}/{name}: is of another log than {source.url} (digest {found}, not "
            f"{expected}); give an empty folder"
        )


def data_files(source: Store, record: Record) -> Iterator[tuple[str, bytes]]:
    """The data files of a record by name, each read and checked when it is its turn."""
    for part, file in record.files.items():
        yield f"{record.folder}/{file.name}", source.read_data(record, part)


def require_nothing_else(out: Folder, source: Folder, names: Collection[str]) -> None:
    """Refuse a folder with files that aren't part of a copy.

    Raises:
        StoreError: Names some of them.
    """
    if out.root == source.root:
        raise StoreError(f"{out.url}: is the store itself; give another folder")
    there = (name for name in out.names() if not name.endswith(".tmp"))
    if others := sorted(n for n in there if n not in names):
        shown = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        raise StoreError(f"{out.url}: has something else in it ({shown}); give an empty folder")
