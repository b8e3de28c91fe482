"""Files that are created whole and only once, by one of many writers: on a local disk, or on S3.

It needs hard links on a local disk, and on S3 a server that honours `If-None-Match` as AWS does.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Any
from uuid import uuid4

from cmoe.common.storage import StorageError, explained, is_local
from cmoe.common.storage_errors import WRITTEN

_NEEDED = "an S3 server with conditional writes (AWS, MinIO, Ceph, R2 have them), or a shared disk"


def create(fs: Any, path: str, data: bytes, url: str) -> bool:
    """Create a file, whole and durable; where there is one change nothing and return False.

    Args:
        fs: fsspec's, of a local disk or S3.
        path: In it.
        data: The contents.
        url: What errors call the file.

    Raises:
        StorageError: It can't be created, or not exclusively.
    """
    with explained(url, WRITTEN):
        return _create_local(path, data) if is_local(fs) else _create_s3(fs, path, data)


def require_exclusive(fs: Any, root: str, url: str) -> None:
    """Refuse a folder that can't be written, or where a second creation overwrites the first.

    Args:
        fs: fsspec's, of a local disk or S3.
        root: The folder in it; made where there is none.
        url: What errors call it.

    Raises:
        StorageError: Says what is needed.
    """
    path = f"{root}/probe-{uuid4().hex}.tmp"
    create(fs, path, b"1", url)
    try:
        if create(fs, path, b"2", url):
            raise StorageError(
                f"{url}: the server overwrites what exists though asked not to "
                f"(it ignores If-None-Match), so two writers would destroy each other's work; "
                f"needed is {_NEEDED}"
            )
    finally:
        with suppress(StorageError), explained(url, WRITTEN):  # who may write may not remove
            fs.rm_file(path)


def _create_s3(fs: Any, path: str, data: bytes) -> bool:
    writer = uuid4().hex
    try:
        fs.pipe_file(path, data, mode="create", Metadata={"writer": writer})
    except OSError:
        # What lies there decides: servers refuse in several forms (412, 409 for a lost race),
        # and s3fs repeats a request whose answer got lost, to be refused by its first try.
        there = False
        with suppress(PermissionError):  # what was refused first says why
            there = fs.exists(path)
        if not there:
            raise
        return bool(fs.metadata(path).get("writer") == writer)
    return True


def _create_local(path: str, data: bytes) -> bool:
    """Write beside, then link: a name appears with all its bytes on the disk, or not at all."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{path}.{uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
            created = True
        except FileExistsError:
            # NFS may repeat a request whose answer got lost: then the name is our own.
            created = os.path.samefile(temporary, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP):
                raise
            raise StorageError(
                f"{path}: no hard links here, which a commit needs: {error}; use another disk"
            ) from error
    finally:
        with suppress(OSError):  # what went wrong is told, not this
            os.unlink(temporary)
    for level in (folder, os.path.dirname(folder)):  # The new name, and the name of a new folder.
        with suppress(PermissionError):  # Who may write below a folder may not be let to list it.
            descriptor = os.open(level, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    return created
