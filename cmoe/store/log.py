"""The log of primitives on a disk, S3 or a hub: append-only, digest-chained, safetensors and JSON.

    <store>/stream.json             the header: the base, the model-wide settings, the run's config
    <store>/000-GQA-1a2b3c4d5e6f/   the first primitive's tensors, one safetensors file per part
    <store>/000.json                its record, written last: what was decided, every file's size
                                    and sha256, the digest of what stands before it in the log

A primitive exists once its record does. Records are named by their index alone: to commit an index
is one exclusive creation, whoever the writer and whatever the task. A data folder's name carries a
digest of its contents: two writers never meet in one, and a repeated append finds its own files.
Every file is created whole and only once; a folder without a record, or a temporary file, is what a
crash left, and no reader looks at it.

Exclusive creation needs hard links on a local disk, and on S3 a server that honours `If-None-Match`
as AWS does; one that doesn't is refused before anything is written. On the Hugging Face hub it is
one commit, made for the commit that was read before. A log whose last records are gone is a shorter
log: nothing in it can tell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import safetensors.torch
import torch

from cmoe.modeling.base import quantization_of
from cmoe.modeling.primitive import MEMORY, PARTS, Primitive
from cmoe.store.files import HEADER as HEADER
from cmoe.store.files import Folder, folder_at, record_name
from cmoe.store.records import BaseId as BaseId
from cmoe.store.records import File, parse_header, parse_record
from cmoe.store.records import Record as Record
from cmoe.store.schema import StoreError as StoreError
from cmoe.store.schema import plain, seal, stamped, unseal

_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Store:
    """One log of primitives, as far as this instance has read it: `append` and `refresh` go on."""

    def __init__(self, folder: Folder, *, read: bool = True) -> None:
        self.url = folder.url
        self.folder = folder
        self._proven = False  # that nobody's files are overwritten
        self._records: tuple[Record, ...] = ()
        data = folder.read(HEADER, "there is no store here; create one first")
        self.header = parse_header(f"{self.url}/{HEADER}", data)
        if read:
            self.refresh()

    @classmethod
    def create(
        cls,
        url: str | os.PathLike[str],
        *,
        base: BaseId,
        settings: Mapping[str, Any],
        config: Mapping[str, Any],
        **storage_options: Any,
    ) -> Store:
        """Start a log at `url`: a path, `hf://owner/name`, or `s3://bucket/prefix` with s3fs's
        options; StoreError where a store is there already, or a value isn't JSON; StorageError
        where the storage fails, or would overwrite what another writer creates.
        """
        folder = folder_at(url, storage_options)
        header = {"base": asdict(base), "settings": settings, "config": config}
        data = seal(stamped(plain(header, "header")))
        folder.require_exclusive()
        if folder.create([(HEADER, data)], new=HEADER):
            raise StoreError(f"{folder.url}/{HEADER}: a store is here already; open it instead")
        store = cls(folder)
        store._proven = True
        return store

    @classmethod
    def open(cls, url: str | os.PathLike[str], **storage_options: Any) -> Store:
        """Read the log at `url`, without its tensors; StoreError where there is none, its schema
        version is unknown, or a file, the chain of digests or the sequence of indices is broken.
        """
        return cls(folder_at(url, storage_options))

    @classmethod
    def follow(cls, url: str | os.PathLike[str], **storage_options: Any) -> Store:
        """As `open`, but no record is read yet: `refresh` does, up to a broken one."""
        return cls(folder_at(url, storage_options), read=False)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks learned, in order."""
        return tuple(record.task for record in self._records)

    @property
    def schemas(self) -> set[int]:
        """The schema versions that its header and records have."""
        return {self.header.schema, *(record.schema for record in self._records)}

    def records(self) -> tuple[Record, ...]:
        """The validated chain, as of the last `open`, `append` or `refresh`."""
        return self._records

    def refresh(self) -> tuple[Record, ...]:
        """Read what others have appended and return it, for one listing where nothing was;
        StoreError as in `open`, and where a record that was read before is gone. The records in
        front of a broken one are read then.
        """
        seen = self._records
        length = 1 + max(self.folder.record_indices(), default=-1)
        if length < len(seen):
            where = f"{self.url}/{record_name(length)}"
            raise StoreError(f"{where}: gone, though it was read before; restore it from a copy")
        for index in range(len(seen), length):
            self._records = (*self._records, self._read_record(index, self._records))
        return self._records[len(seen) :]

    def append(self, primitive: Primitive) -> Record:
        """Commit `primitive` right after the records that this instance has read.

        It exists whole once its record does, and not at all before. Safe to repeat after a crash.
        StoreError where the task is in the log already or unfit for a file name, a value of the
        decision isn't JSON, or another writer holds the index: what he wrote stays as it is.
        StorageError as in `create`.
        """
        if not self._proven:
            self.folder.require_exclusive()
            self._proven = True
        index, name = len(self), record_name(len(self))
        blobs = {part: _dump(tensors) for part, tensors in primitive.parts().items()}
        files = {
            part: File(f"{part}.safetensors", len(blob), sha256(blob).hexdigest())
            for part, blob in blobs.items()
        }
        digest = sha256("".join(file.sha256 for file in files.values()).encode()).hexdigest()
        fields = {
            "index": index,
            "task": primitive.task,
            "rank": primitive.rank,
            "lora_alpha": primitive.lora_alpha,
            "folder": f"{index:03d}-{primitive.task}-{digest[:12]}",
            "files": {part: asdict(file) for part, file in files.items()},
            "parameters": primitive.parameter_counts(),
            "decision": primitive.decision,
            "parent": self._tip(self._records),
            "builds_on": primitive.builds_on,
            "instructions": primitive.instructions and asdict(primitive.instructions),
            "references": [asdict(each) for each in primitive.references] or None,
        }
        present = {name: value for name, value in fields.items() if value is not None}
        data = seal(stamped(plain(present, "record")))
        # What a reader would refuse is refused here, before anything is written.
        record = self._parse_record(data, index, self._records)
        named = {f"{record.folder}/{files[part].name}": part for part in blobs}
        contents = ((file, blobs[part]) for file, part in named.items())
        taken = self.folder.create((*contents, (name, data)), new=name)
        if taken in named:  # a crash left it; the folder's name is a promise
            self.read_data(record, named[taken])
        if taken:
            holder = self._read_record(index, self._records)
            raise StoreError(
                f"{self.url}/{name}: index {index} is held by another writer's task "
                f"{holder.task!r}; open the store again and learn {record.task!r} after it"
            )
        self._records = (*self._records, record)
        return record

    def read(self, index: int) -> Primitive:
        """The primitive at `index`; StoreError where a file isn't what its record describes."""
        if not 0 <= index < len(self):
            raise StoreError(f"{self.url}: no primitive {index}; there are {len(self)}")
        record = self._records[index]
        parts = {
            part: safetensors.torch.load(self.read_data(record, part)) for part in record.files
        }
        primitive = Primitive(
            record.task,
            record.rank,
            record.lora_alpha,
            **parts,
            decision=record.decision,
            builds_on=record.builds_on,
            instructions=record.instructions,
            references=record.references or (),
        )
        self._require_counts(record, primitive.parameter_counts())
        return primitive

    def check(self, index: int) -> None:
        """Read the files of a primitive, one after the other; errors as of `read`."""
        record, counts = self._records[index], {}
        for part in record.files:
            tensors = safetensors.torch.load(self.read_data(record, part))
            counts[part] = sum(tensor.numel() for tensor in tensors.values())
        self._require_counts(record, counts)

    def _require_counts(self, record: Record, counts: Mapping[str, int]) -> None:
        if counts != record.parameters:
            raise StoreError(
                f"{self.url}/{record_name(record.index)}: counts {record.parameters} "
                f"parameters, but its files hold {counts}; it was written for other tensors"
            )

    def verify(self) -> None:
        """Read every file afresh; StoreError where one is missing, damaged or of another log."""
        fresh = Store(self.folder)
        if fresh.header != self.header or fresh.records()[: len(self)] != self._records:
            raise StoreError(f"{self.url}: another log now lies here; open it again")
        for index in range(len(fresh)):
            fresh.check(index)

    def require_base(self, digest: str) -> None:
        """Refuse, with StoreError, a base other than the one that the primitives belong to."""
        base = self.header.base
        made, found = quantization_of(base.digest), quantization_of(digest)
        if made != found:
            raise StoreError(
                f"{self.url}/{HEADER}: made for base {base.name}@{base.revision} "
                f"{_quantized(made)}, not {_quantized(found)}; set model.quantization "
                f"{made or 'null'}"
            )
        if digest != base.digest:
            raise StoreError(
                f"{self.url}/{HEADER}: made for base {base.name}@{base.revision} with digest "
                f"{base.digest}, not for one with digest {digest}; load that base"
            )

    def _tip(self, records: Sequence[Record]) -> str:
        """What the record after `records` names as its parent."""
        return records[-1].digest if records else self.header.digest

    def _read_record(self, index: int, before: Sequence[Record]) -> Record:
        gap = "a gap in the log, as later records exist; restore it from a copy"
        return self._parse_record(self.folder.read(record_name(index), gap), index, before)

    def _parse_record(self, data: bytes, index: int, before: Sequence[Record]) -> Record:
        """The record in `data`, if it is fit to stand at `index` after the records `before`."""
        where = f"{self.url}/{record_name(index)}"
        record = parse_record(where, data)
        if set(record.files) - {MEMORY} != set(PARTS):
            raise StoreError(
                f"{where}: has the parts {', '.join(record.files)}; this program reads "
                f"{', '.join(PARTS)}, and {MEMORY} beside them"
            )
        if not _TASK.fullmatch(record.task):
            raise StoreError(f"{where}: {record.task!r} can't name a folder; {_TASK.pattern} can")
        if record.task in (other.task for other in before):
            raise StoreError(f"{where}: task {record.task!r} is in the log already; rename it")
        if record.builds_on not in (None, *(other.task for other in before)):
            raise StoreError(
                f"{where}: builds on task {record.builds_on!r}, which isn't in the log before it; "
                "restore it from a copy"
            )
        if record.parent != (tip := self._tip(before)):
            last = record_name(index - 1) if index else HEADER
            raise StoreError(f"{where}: its parent is {record.parent}, but {last} has digest {tip}")
        return record

    def written(self, record: Record | None = None) -> dict[str, Any]:
        """The fields of a record's file, or of the header's, as they were written.

        Raises:
            StoreError: It isn't the file any more that was read before.
        """
        name = HEADER if record is None else record_name(record.index)
        where, digest = f"{self.url}/{name}", (self.header if record is None else record).digest
        fields = unseal(where, self.folder.read(name, "it was read before"))
        if fields["digest"] != digest:
            raise StoreError(f"{where}: another log now lies here; open it again")
        return fields

    def read_data(self, record: Record, part: str) -> bytes:
        """One data file of a record; StoreError where it isn't what the record describes."""
        file, owner = record.files[part], record_name(record.index)
        path = f"{record.folder}/{file.name}"
        data = self.folder.read(path, f"{owner} lists it; restore it from a copy", file.size)
        digest = sha256(data).hexdigest()
        if (len(data), digest) != (file.size, file.sha256):
            raise StoreError(
                f"{self.url}/{path}: damaged: {len(data)} bytes with sha256 {digest}, but "
                f"{owner} says {file.size} with {file.sha256}; restore it from a copy"
            )
        return data


def _quantized(quantization: str | None) -> str:
    return f"quantised as {quantization}" if quantization else "as it is"


def _dump(tensors: Mapping[str, torch.Tensor]) -> bytes:
    # safetensors refuses views and shared memory; a copy of each tensor is neither.
    layout = torch.contiguous_format
    copies = {name: tensor.detach().clone(memory_format=layout) for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, metadata={"format": "pt"})
