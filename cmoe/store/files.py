"""The files of a store: each created whole and once, its JSON canonical and sealed by a digest."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from cmoe.common.exclusive import create, require_exclusive
from cmoe.common.hub import ATTRIBUTES, README, Hub
from cmoe.common.storage import (
    HUB,
    StorageError,
    explained,
    filesystem,
    is_local,
    is_missing,
    require_url,
)
from cmoe.common.storage_errors import LISTED, READ

SCHEMA = 1
MAX_JSON = 4 * 2**20
"""Bytes of a header or a record at most; a record of hundreds of layers has some thousands."""
HEADER = "stream.json"
_RECORD = re.compile(r"\d{3,}\.json")


class StoreError(StorageError):
    """A store or a primitive was refused; the message names the file, the cause and a way out.

    Where its storage fails, it is a `StorageError`.
    """


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


def seal(fields: Mapping[str, Any]) -> bytes:
    """The file of `fields`: canonical JSON, with the schema version and the digest of all else;
    StoreError where it is too large to be read again.
    """
    encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
    body = {**fields, "schema": SCHEMA}
    data = encode({**body, "digest": sha256(encode(body).encode()).hexdigest()}).encode()
    if len(data) > MAX_JSON:
        raise StoreError(f"a header or record of {len(data):,} bytes; at most {MAX_JSON:,}")
    return data


def unseal(where: str, data: bytes) -> dict[str, Any]:
    """The fields of a sealed file; StoreError for another schema version or one changed byte."""
    try:
        fields = json.loads(data)
        schema, digest = fields.pop("schema"), fields.pop("digest")
        if schema != SCHEMA:
            raise StoreError(f"{where}: has schema version {schema}; this program reads {SCHEMA}")
        if seal(fields) != data:
            raise ValueError(f"its digest is not {digest}")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise StoreError(f"{where}: damaged: {error!r}; restore it from a copy") from error
    return {**fields, "digest": digest}


def plain(value: Any, key: str) -> Any:
    """`value` in types that JSON gives back (tuples as lists); StoreError names the key if none."""
    if isinstance(value, Mapping):
        if odd := [name for name in value if not isinstance(name, str)]:
            raise StoreError(f"{key}: JSON's keys are strings, not {odd[0]!r}")
        return {name: plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{key}.{place}") for place, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise StoreError(f"{key}: {value} is not JSON; give a finite number, or null")
    if value is not None and not isinstance(value, str | int | float):
        raise StoreError(f"{key}: a {type(value).__name__} is not JSON; give a plain value")
    return value
