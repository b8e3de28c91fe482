"""What a store's header and records say, in the terms of the newest version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cmoe.common.instructions import Instructions
from cmoe.common.reference import Reference
from cmoe.store.schema import StoreError, newest, require_known, unseal


@dataclass(frozen=True)
class BaseId:
    """The frozen base that a store's primitives were trained on; the digest alone decides."""

    name: str
    revision: str
    digest: str


@dataclass(frozen=True)
class Header:
    """What holds for a whole stream (`stream.json`).

    Attributes:
        settings: The model-wide choices that a reader needs (top_k, the locator's feature ...).
        config: The run that wrote the store, to look up.
        digest: sha256 of the file's rest as canonical JSON; the first record's parent.
        schema: The version that the file has; what this says is as the newest version says it.
        cmoe: The program that wrote it; version 1 doesn't say.
    """

    base: BaseId
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    digest: str
    schema: int
    cmoe: str | None


@dataclass(frozen=True)
class File:
    """One data file: its name in the primitive's folder and its size in bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """One line of the log (`<index>.json`): a primitive without its tensors.

    Attributes:
        folder: Where its data files are, relative to the store.
        files: Its data files by part.
        parameters: The scalars that it adds, by part.
        parent: Digest of the record before it; of the header for index 0.
        digest: sha256 of the file's rest as canonical JSON; the primitive's identity.
        schema: The version that the file has, as in the header.
        cmoe: The program that wrote it, likewise.
        builds_on: The earlier task that it builds on, if any; logs of before have no such field.
        instructions: What the task's prompts say beside their questions; likewise.
        references: The task's reference answers; likewise.
    """

    index: int
    task: str
    rank: int
    lora_alpha: float
    folder: str
    files: Mapping[str, File]
    parameters: Mapping[str, int]
    decision: Mapping[str, Any]
    parent: str
    digest: str
    schema: int
    cmoe: str | None
    builds_on: str | None = None
    instructions: Instructions | None = None
    references: tuple[Reference, ...] | None = None


def parse_header(where: str, data: bytes) -> Header:
    """What a header's file says; StoreError where it is damaged or of a later program."""
    written = unseal(where, data)
    require_known(where, written, Header.__dataclass_fields__)
    with _understood(where):
        fields = newest(written)
        return Header(base=BaseId(**fields.pop("base")), **fields)


def parse_record(where: str, data: bytes) -> Record:
    """What a record's file says; errors as of `parse_header`."""
    written = unseal(where, data)
    require_known(where, written, Record.__dataclass_fields__)
    with _understood(where):
        fields = newest(written)
        files = {part: File(**file) for part, file in fields.pop("files").items()}
        told = fields.pop("instructions", None)
        references = tuple(
            Reference(tuple(each["tokens"]), tuple(each["logprobs"]))
            for each in fields.pop("references", ())
        )
        return Record(
            files=files,
            instructions=None if told is None else Instructions(**told),
            references=references or None,
            **fields,
        )


@contextmanager
def _understood(where: str) -> Iterator[None]:
    """A file whose seal is whole, but not what it says."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{where}: sealed, but not as this program writes it ({error!r}); use the one that "
            "wrote it, or restore it from a copy"
        ) from error
