"""A log copied for others to load: checked, and without the paths of the machine that wrote it.

The header is written last: what an interrupted export has left is no store to any reader, and the
same export finishes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from cmoe.common.remote.hub import README
from cmoe.store.copying import data_files, require_nothing_else
from cmoe.store.files import HEADER, folder_at, record_name
from cmoe.store.log import Store, StoreError
from cmoe.store.schema import digest_of, seal

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
    header = source.written()
    sealed = seal({**header, **{name: without_paths(header[name]) for name in ("base", "config")}})
    texts = {} if card is None else {README: without_paths_in_text(card).encode()}
    parent = digest_of(sealed)
    for record in records:
        name = record_name(record.index)
        texts[name] = seal({**source.written(record), "parent": parent})
        parent = digest_of(texts[name])
    data = [f"{record.folder}/{file.name}" for record in records for file in record.files.values()]
    require_nothing_else(out, source.folder, {HEADER, *texts, *data})
    out.require_exclusive()
    contents = chain.from_iterable(data_files(source, record) for record in records)
    if taken := out.create(chain(contents, texts.items(), [(HEADER, sealed)])):
        raise StoreError(f"{out.url}/{taken}: is of another export; give an empty folder")
    return Store(out)


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
