"""The folder of a store, on a disk, S3 or the hub: each file created whole, once, by one writer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cmoe.common.exclusive import create, require_exclusive
from cmoe.common.remote.hub import ATTRIBUTES, README, Hub
from cmoe.common.storage import (
    HUB,
    explained,
    filesystem,
    is_local,
    is_missing,
    require_url,
)
from cmoe.common.storage_errors import LISTED, READ
from cmoe.store.schema import MAX_JSON, StoreError

HEADER = "stream.json"
_RECORD = re.compile(r"\d{3,}\.json")


class Folder(Protocol):
    """A folder whose files are created whole, once, and never changed."""

    @property
    def url(self) -> str:
        """As it was given."""
        ...

    @property
    def root(self) -> str:
        """The one name of its place."""
        ...

    def names(self) -> list[str]:
        """All files in it and below."""
        ...

    def record_indices(self) -> list[int]:
        """Of the records in it, by their names."""
        ...

    def read(self, name: str, missing: str, most: int = MAX_JSON) -> bytes:
        """The whole file of at most `most` bytes; StoreError for a larger one, which isn't read,
        and without one, `missing` saying what that means.
        """
        ...

    def create(self, files: Iterable[tuple[str, bytes]], new: str | None = None) -> str | None:
        """Create files, each whole and durable, in their order or all at once.

        Those that are there already stay as they are, and have to have the same bytes.

        Args:
            files: By name.
            new: One of them that mustn't be there.

        Returns:
            The file in the way, behind which nothing was created; None where all are there.
        """
        ...

    def require_exclusive(self) -> None:
        """Refuse a place that can't be written, or where what exists would be overwritten."""
        ...


def folder_at(url: str | os.PathLike[str], storage_options: Mapping[str, Any]) -> Folder:
    """The folder of a path, `s3://bucket/prefix` or `hf://owner/name[@revision]`.

    Raises:
        StorageError: There is no such place.
    """
    url = require_url(url)
    if url.startswith(HUB):
        return HubFolder(Hub.at(url))
    url = url.rstrip("/")
    fs, root = filesystem(url, **storage_options)
    if not {"file", "s3"} & set(fs.protocol):
        raise StoreError(f"{url}: a store is on a local path, s3:// or hf://, not {fs.protocol}")
    return DiskFolder(fs, root, url)


@dataclass(frozen=True)
class DiskFolder:
    """A folder on a local disk or S3."""

    fs: Any
    root: str
    url: str

    def names(self) -> list[str]:
        with explained(self.url, LISTED):
            return [path.removeprefix(self.root).lstrip("/") for path in self.fs.find(self.root)]

    def record_indices(self) -> list[int]:
        with explained(self.url, LISTED):
            return _indices(path.rsplit("/", 1)[-1] for path in self.fs.ls(self.root, detail=False))

    def read(self, name: str, missing: str, most: int = MAX_JSON) -> bytes:
        where = f"{self.url}/{name}"
        with explained(where, READ):
            try:
                size = int(self.fs.info(f"{self.root}/{name}")["size"])
                _require_size(where, size, most)
                # No more is read, should it grow meanwhile. There is no range of an empty file.
                return bytes(self.fs.cat_file(f"{self.root}/{name}", end=most)) if size else b""
            except FileNotFoundError as error:
                if is_missing(error):
                    raise StoreError(f"{where}: missing; {missing}") from error
                raise

    def create(self, files: Iterable[tuple[str, bytes]], new: str | None = None) -> str | None:
        for name, data in files:
            if not self.create_file(name, data) and (name == new or not self._has(name, data)):
                return name
        return None

    def create_file(self, name: str, data: bytes) -> bool:
        """Create one, whole and durable; where there is one change nothing and return False."""
        return create(self.fs, f"{self.root}/{name}", data, f"{self.url}/{name}")

    def _has(self, name: str, data: bytes) -> bool:
        """Whether a file that is there has these bytes."""
        with explained(f"{self.url}/{name}", READ):
            size = int(self.fs.info(f"{self.root}/{name}")["size"])
        gone = "it was there just now"
        return size == len(data) and self.read(name, gone, max(size, 1)) == data

    def require_exclusive(self) -> None:
        if not is_local(self.fs):  # a disk's links never overwrite
            require_exclusive(self.fs, self.root, self.url)


@dataclass(frozen=True)
class HubFolder:
    """A folder of a model repository of the hub: what is created together is one commit."""

    hub: Hub

    @property
    def url(self) -> str:
        return self.hub.url

    @property
    def root(self) -> str:
        return f"{self.hub.repo}@{self.hub.revision}/{self.hub.prefix}"

    def names(self) -> list[str]:
        return sorted(self.hub.files().keys() - {ATTRIBUTES}) if self.hub.exists() else []

    def record_indices(self) -> list[int]:
        return _indices(self.hub.files())

    def read(self, name: str, missing: str, most: int = MAX_JSON) -> bytes:
        where = f"{self.url}/{name}"
        if (found := self.hub.find(name)) is None:
            raise StoreError(f"{where}: missing; {missing}")
        _require_size(where, found.size or 0, most)
        return self.hub.read(name, found.commit_hash)

    def create(self, files: Iterable[tuple[str, bytes]], new: str | None = None) -> str | None:
        message = f"Add {new}" if new else "Export"
        return self.hub.commit(files, message, new=new, replaced=(README,))

    def require_exclusive(self) -> None:
        self.hub.require_writable()


def _indices(names: Iterable[str]) -> list[int]:
    return [int(name.removesuffix(".json")) for name in names if _RECORD.fullmatch(name)]


def _require_size(where: str, size: int, most: int) -> None:
    if size > most:
        raise StoreError(
            f"{where}: damaged: it has {size:,} bytes, {most:,} at most; restore it from a copy"
        )


def record_name(index: int) -> str:
    return f"{index:03d}.json"
