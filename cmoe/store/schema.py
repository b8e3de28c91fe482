"""The sealed JSON files of a store: canonical, each with its version, its writer and a digest.

A file says its own version, so that a log goes on in the newest one behind records of an older one,
which keep their bytes and digests. Every known version is read, as the newest would say the same.

    1    until cmoe 0.1.0, and for a time behind it. What came later has no version of its own:
         settings without `gates`, `attention` or `locator.paraphrases` mean what there was before
    2    settings state all of these; a file names the cmoe that wrote it, as `cmoe`

All versions are sealed alike, and all from 2 on have `cmoe`: so a file of a later version is told
from a damaged one, and the refusal says which program reads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from typing import Any

from cmoe.common.storage import StorageError
from cmoe.version import __version__

SCHEMA = 2
MAX_JSON = 4 * 2**20
"""Bytes of a header or a record at most; a record of hundreds of layers has some thousands."""


class StoreError(StorageError):
    """A store or a primitive was refused; the message names the file, the cause and a way out.

    Where its storage fails, it is a `StorageError`.
    """


def stamped(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as this program writes them."""
    return {**fields, "schema": SCHEMA, "cmoe": __version__}


def seal(fields: Mapping[str, Any]) -> bytes:
    """The file of `fields`: canonical JSON, with the digest of all else.

    Raises:
        StoreError: It is too large to be read again.
    """
    body = {name: value for name, value in fields.items() if name != "digest"}
    data = _canonical({**body, "digest": sha256(_canonical(body)).hexdigest()})
    if len(data) > MAX_JSON:
        raise StoreError(f"a header or record of {len(data):,} bytes; at most {MAX_JSON:,}")
    return data


def _canonical(fields: Mapping[str, Any]) -> bytes:
    encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
    return encode(fields).encode()


def digest_of(sealed: bytes) -> str:
    """The digest in a sealed file."""
    return str(json.loads(sealed)["digest"])


def unseal(where: str, data: bytes) -> dict[str, Any]:
    """The fields of a sealed file as they were written, with its version and its digest.

    Raises:
        StoreError: A byte was changed, or its version is of a later program.
    """
    try:
        fields: dict[str, Any] = json.loads(data)
        schema, digest = fields["schema"], fields["digest"]
        if seal(fields) != data:
            raise ValueError(f"its digest is not {digest}")
        if type(schema) is not int or schema < 1:
            raise ValueError(f"its schema version is {schema!r}")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise StoreError(f"{where}: damaged: {error!r}; restore it from a copy") from error
    if schema not in READERS:
        known = " and ".join(map(str, READERS))
        raise _of_later(where, fields, f"has schema version {schema}", f"reads {known}")
    return fields


def newest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of any known version says, as the newest version says it.

    Args:
        fields: As `unseal` gives them; `schema` and `digest` stay the file's.
    """
    return READERS[fields["schema"]](fields)


def require_known(where: str, fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse, with StoreError, a file that says more than the fields `known`."""
    if more := sorted(fields.keys() - {*known}):
        raise _of_later(where, fields, f"has {', '.join(more)}", "knows nothing of that")


def _of_later(where: str, fields: Mapping[str, Any], what: str, this: str) -> StoreError:
    writer = fields.get("cmoe")
    wrote, needed = (f", written by cmoe {writer}", f"cmoe {writer} or a newer one")
    if writer is None:
        wrote, needed = "", "a newer one"
    return StoreError(
        f"{where}: {what}{wrote}; this is cmoe {__version__}, which {this}; install {needed}"
    )


def _from_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    found = {**fields, "cmoe": None}
    settings = found.get("settings", {})
    if "top_k" in settings:  # other methods' never changed
        locator = {"paraphrases": 0, **settings["locator"]}
        gates = {"gates": "renormalized", "attention": 0}
        found["settings"] = {**gates, **settings, "locator": locator}
    return found


READERS: Mapping[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _from_1, 2: dict}
"""By version: from its fields to those of the newest."""


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
