"""What broken commits have left beside a log, and its removal where no writer can still need it.

A data folder at an index that the log has, and that its record doesn't name, is of a writer who
lost: his record can't come any more. Whatever else is left may be of a writer at work, up to an age
that is compared by the storage's own clock. On the hub nothing is left: what is created together
is one commit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

from cmoe.common.exclusive import create
from cmoe.common.storage import StorageError, explained, is_local
from cmoe.common.storage_errors import LISTED, READ, WRITTEN
from cmoe.store.files import DiskFolder, record_name
from cmoe.store.log import Store

MIN_AGE_S = 24 * 3600.0
"""What is younger may be of a writer that is at work: no file takes a day to be written."""
_DATA = re.compile(r"(\d{3,})-[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{12}")
_TEMPORARY = ".tmp"


@dataclass(frozen=True)
class Leftover:
    """A data folder without a record, a temporary file, or an upload that wasn't completed.

    Attributes:
        name: In the store's folder.
        why: What it is.
        files: How many, or how many parts of an upload.
        size: Bytes, of all of them.
        written: When the youngest was, in seconds since 1970 by the storage's clock.
        lost: Whether its writer has lost, so that it never comes into the log.
        upload: S3's name of an upload.
    """

    name: str
    why: str
    files: int
    size: int
    written: float
    lost: bool = False
    upload: str | None = None


def leftovers(store: Store, show: Callable[[str], object] = print) -> list[Leftover]:
    """All that broken commits have left beside the log that `store` has read.

    Args:
        store: The log.
        show: Told where uploads can't be looked for: that is a right of its own.

    Raises:
        StorageError: It can't be listed.
    """
    folder = store.folder
    if not isinstance(folder, DiskFolder):
        return []
    found: dict[str, list[_Entry]] = {}
    committed = {record.folder for record in store.records()}
    entries = list(_entries(folder))
    unread = {entry.name for entry in entries} - {record_name(n) for n in range(len(store))}
    for entry in entries:
        top, _, below = entry.name.partition("/")
        data = None if top in committed else _DATA.fullmatch(top)
        if entry.name.endswith(_TEMPORARY) and (not below or top in committed):
            found.setdefault(entry.name, []).append(entry)
        elif data and record_name(int(data[1])) not in unread:  # else it may be that record's
            found.setdefault(top, []).append(entry)
    left = [_of_entries(store, name, entries) for name, entries in found.items()]
    try:
        left += _uploads(folder)
    except StorageError as error:
        if error.transient:
            raise
        show(f"{error}. Uploads that weren't completed are not looked for")
    return sorted(left, key=lambda each: each.name)


class _Entry(NamedTuple):
    """A file, or a disk's folder, which may be empty; times are in seconds since 1970."""

    name: str
    files: int
    size: int
    written: float


def _entries(folder: DiskFolder) -> Iterator[_Entry]:
    with explained(folder.url, LISTED):
        found = folder.fs.find(folder.root, detail=True, withdirs=is_local(folder.fs))
    for path, info in found.items():
        name, is_file = path.removeprefix(folder.root).lstrip("/"), info["type"] == "file"
        size = int(info["size"]) if is_file else 0
        if is_file or is_local(folder.fs):
            yield _Entry(name, int(is_file), size, _time(info))


def _time(info: Any) -> float:
    written = info["mtime"] if "mtime" in info else info["LastModified"]
    return written.timestamp() if isinstance(written, datetime) else float(written)


def _of_entries(store: Store, name: str, entries: Sequence[_Entry]) -> Leftover:
    why, lost = "a temporary file", False
    if match := _DATA.fullmatch(name):
        index = int(match[1])
        lost = index < len(store)
        winner = store.records()[index].task if lost else ""
        why = f"of a writer that lost index {index} to {winner}" if lost else "data without record"
    files, size = sum(each.files for each in entries), sum(each.size for each in entries)
    return Leftover(name, why, files, size, max(each.written for each in entries), lost)


def _uploads(folder: DiskFolder) -> Iterator[Leftover]:
    """Large files that were uploaded to S3 in part."""
    if is_local(folder.fs):
        return
    bucket, _, prefix = folder.root.partition("/")
    with explained(folder.url, LISTED):
        answer = folder.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
        for each in answer.get("Uploads", ()):
            place = {"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]}
            parts = folder.fs.call_s3("list_parts", **place).get("Parts", ())
            yield Leftover(
                each["Key"].removeprefix(f"{prefix}/"),
                "an upload that wasn't completed",
                len(parts),
                sum(part["Size"] for part in parts),
                each["Initiated"].timestamp(),
                upload=each["UploadId"],
            )


def clock(store: Store) -> float:
    """What time it is where the log is kept, in seconds since 1970.

    Raises:
        StorageError: Nothing can be written there.
    """
    folder = store.folder
    assert isinstance(folder, DiskFolder)  # elsewhere nothing is left
    path = f"{folder.root}/probe-{uuid4().hex}{_TEMPORARY}"
    create(folder.fs, path, b"", folder.url)
    with explained(folder.url, READ):
        now = _time(folder.fs.info(path))
    with suppress(FileNotFoundError), explained(folder.url, WRITTEN):
        folder.fs.rm_file(path)
    return now


def remove(store: Store, left: Leftover, now: float) -> str | None:
    """Remove what was left, for good; where it stays, why.

    Args:
        store: The log.
        left: As `leftovers` has found it.
        now: By `clock`.

    Raises:
        StorageError: It can't be removed.
    """
    folder = store.folder
    assert isinstance(folder, DiskFolder)
    if not left.lost and now - left.written < MIN_AGE_S:
        return f"younger than {MIN_AGE_S / 3600:.0f} hours: its writer may be at work"
    store.refresh()
    if left.name in {record.folder for record in store.records()}:
        return "committed meanwhile"
    path = f"{folder.root}/{left.name}"
    with explained(f"{folder.url}/{left.name}", WRITTEN), suppress(FileNotFoundError):
        if left.upload is not None:
            bucket, _, key = path.partition("/")
            place = {"Bucket": bucket, "Key": key, "UploadId": left.upload}
            folder.fs.call_s3("abort_multipart_upload", **place)
        else:
            folder.fs.rm(path, recursive=not left.name.endswith(_TEMPORARY))
    return None
