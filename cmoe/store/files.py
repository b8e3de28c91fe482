"""The files of a store: each created whole and once, its JSON canonical and sealed by a digest."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cmoe.common.exclusive import create, require_exclusive
from cmoe.common.storage import (
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


@dataclass(frozen=True)
class Folder:
    """A folder on a local disk or S3 whose files are created whole, once, and never changed."""

    fs: Any
    root: str
    url: str

    @classmethod
    def at(cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any]) -> Folder:
        url = require_url(url).rstrip("/")
        fs, root = filesystem(url, **storage_options)
        if not {"file", "s3"} & set(fs.protocol):
            raise StoreError(f"{url}: a store is on a local path or s3://, not {fs.protocol}")
        return cls(fs, root, url)

    def record_indices(self) -> list[int]:
        with explained(self.url, LISTED):
            names = [path.rsplit("/", 1)[-1] for path in self.fs.ls(self.root, detail=False)]
        return [int(name.removesuffix(".json")) for name in names if _RECORD.fullmatch(name)]

    def read(self, name: str, missing: str, most: int = MAX_JSON) -> bytes:
        """The whole file of at most `most` bytes; StoreError for a larger one, which isn't read,
        and without one, `missing` saying what that means.
        """
        where = f"{self.url}/{name}"
        with explained(where, READ):
            try:
                size = int(self.fs.info(f"{self.root}/{name}")["size"])
                if size > most:
                    raise StoreError(
                        f"{where}: damaged: it has {size:,} bytes, {most:,} at most; restore it "
                        "from a copy"
                    )
                # No more is read, should it grow meanwhile. There is no range of an empty file.
                return bytes(self.fs.cat_file(f"{self.root}/{name}", end=most)) if size else b""
            except FileNotFoundError as error:
                if is_missing(error):
                    raise StoreError(f"{where}: missing; {missing}") from error
                raise

    def create(self, name: str, data: bytes) -> bool:
        """Create a file, whole and durable; where there is one change nothing and return False."""
        return create(self.fs, f"{self.root}/{name}", data, f"{self.url}/{name}")

    def require_exclusive(self) -> None:
        """Refuse a server that overwrites what exists; a disk's links never do."""
        if not is_local(self.fs):
            require_exclusive(self.fs, self.root, self.url)


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
