"""A folder on S3 and its copy on this machine, which all processes of the machine share.

The copy is named by what the storage lists: names, sizes and ETags. So another state of the folder
is another copy, and files that are there need no look at the storage's. A file appears in the copy
when it is whole and verified: what a killed process leaves doesn't count. One process fetches, the
others wait for it; its lock ends with it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cmoe.common.files import whole
from cmoe.common.storage import (
    FIRST_ATTEMPTS,
    S3,
    StorageAwayError,
    StorageError,
    explained,
    filesystem,
    require_url,
)
from cmoe.common.storage_errors import LISTED, READ, WRITTEN

GIB = 2**30
LATEST = "latest"  # which copy of a URL was fetched whole at last
_NAMED = 100  # characters of a URL in its folder's name, which a disk limits to 255
_PIECE = 2**20  # bytes read at a time to verify them
_ETAG = re.compile("[0-9a-f]{32}(?:-([0-9]+))?")
_DIRECTORY = "--x-s3"  # behind the names of S3 Express's buckets, whose ETags are random


@dataclass(frozen=True)
class Listed:
    """A file as the storage lists it: its bytes, and the tag that changes with them."""

    size: int
    tag: str


class NodeCopy:
    """A state of a folder on S3, and its copy.

    Attributes:
        url: Of the folder.
        files: By name, those that are wanted.
        folder: The copy; it need not be there yet.
    """

    def __init__(self, url: str, cache: Path, wanted: Callable[[str], bool]) -> None:
        """List the folder, not what is in folders within it.

        Args:
            url: `s3://bucket/prefix`.
            cache: What copies are kept in.
            wanted: Says of a name whether the file belongs to the copy.

        Raises:
            StorageError: It can't be listed.
        """
        self.url = require_url(url).rstrip("/")
        first, self._root = filesystem(self.url, attempts=FIRST_ATTEMPTS)
        self._fs, _ = filesystem(self.url)
        with explained(self.url, LISTED):
            found = first.ls(self._root, detail=True)
        self.files: Mapping[str, Listed] = {
            name: Listed(info["size"], str(info.get("ETag") or info.get("LastModified")).strip('"'))
            for info in sorted(found, key=lambda info: str(info["name"]))
            if info["type"] == "file"
            and wanted(name := info["name"].removeprefix(self._root).lstrip("/"))
        }
        state = repr([(name, each.size, each.tag) for name, each in self.files.items()])
        self._digest = hashlib.sha256(state.encode()).hexdigest()[:16]
        self._home = _home(self.url, cache)
        self.folder = self._home / self._digest

    def fetch(self, names: Collection[str], *, last: bool = False) -> None:
        """Bring files, unless this or another process of this machine has done so.

        Args:
            names: Of the files.
            last: Whether the copy is whole with them; then `latest_copy` finds it.

        Raises:
            StorageError: One can't be read, or kept here; there is too little room, for example.
        """
        from filelock import FileLock

        missing = [*self._missing(names)]
        if not missing and not (last and latest_copy(self.url, self._home.parent) != self.folder):
            return
        with explained(self.folder, WRITTEN):
            self.folder.mkdir(parents=True, exist_ok=True)
        with explained(self.folder, WRITTEN), FileLock(f"{self.folder}.lock"):
            for left in self.folder.glob("*.tmp"):  # by a process that was killed
                left.unlink()
            missing = [*self._missing(names)]
            self._require_room(missing)
            for name in missing:
                self._fetch(name)
            if last:
                with whole(self._home / LATEST) as beside:
                    beside.write_text(self._digest)

    def has(self, names: Collection[str]) -> bool:
        """Whether files are in the copy."""
        return not any(self._missing(names))

    def _missing(self, names: Collection[str]) -> Iterator[str]:
        for name in names:
            file = self.folder / name
            if not file.is_file() or file.stat().st_size != self.files[name].size:
                yield name

    def _require_room(self, names: Collection[str]) -> None:
        needed = sum(self.files[name].size for name in names)
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise StorageError(
                f"{self.url}: {needed / GIB:.2f} GiB are to be copied to {self._home.parent}, and "
                f"its disk has {free / GIB:.2f} GiB left; free some space there, or name a folder "
                "on a larger disk by HF_HUB_CACHE or HF_HOME"
            )

    def _fetch(self, name: str) -> None:
        """Bring a file, once more if what came isn't what the storage listed."""
        url, listed = f"{self.url}/{name}", self.files[name]
        with whole(self.folder / name) as part:
            for _ in range(2):
                with explained(url, READ):
                    if self._got(name, part):
                        tag = self._tag(part, name, listed.tag)
                        if part.stat().st_size == listed.size and tag in (None, listed.tag):
                            return
            raise StorageAwayError(
                f"{url}: can't be read: what came isn't what was listed ({listed.size:,} bytes, "
                f"ETag {listed.tag}); it may have been replaced meanwhile. Try again"
            )

    def _got(self, name: str, part: Path) -> bool:
        """Bring a file; whether it is what a newer tag says that AWS may send along with it."""
        try:
            self._fs.get_file(f"{self._root}/{name}", str(part))
        except Exception as error:
            if type(error).__name__ != "FlexibleChecksumError":  # botocore's
                raise
            return False
        return True

    def _tag(self, file: Path, name: str, listed: str) -> str | None:
        """The ETag that a file would have as it was uploaded: an MD5, or the MD5 of its parts'.

        None where it is something else: with keys of one's own, in a directory bucket, on a server
        that doesn't tell the size of parts.
        """
        bucket, _, prefix = self._root.partition("/")
        found = _ETAG.fullmatch(listed)
        if found is None or bucket.endswith(_DIRECTORY):
            return None
        parts = {"PartNumber": 1} if found[1] else {}
        key = f"{prefix}/{name}".lstrip("/")
        head = self._fs.call_s3("head_object", Bucket=bucket, Key=key, **parts)
        encrypted = head.get("ServerSideEncryption") or ""
        if "kms" in encrypted or "SSECustomerAlgorithm" in head:
            return None
        if not found[1]:
            return next(_md5s(file, file.stat().st_size)).hex()
        digests = [*_md5s(file, head["ContentLength"])]
        if len(digests) != int(found[1]):
            return None
        return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{found[1]}"


def latest_copy(url: str, cache: Path) -> Path | None:
    """The copy of a folder that was fetched whole at last; None where there is none."""
    home = _home(url.rstrip("/"), cache)
    with suppress(OSError):
        found = home / (home / LATEST).read_text()
        return found if found.is_dir() else None
    return None


def _home(url: str, cache: Path) -> Path:
    """The folder of a URL's copies: of two URLs with one name, the copies have their own."""
    return cache / f"s3--{url.removeprefix(S3).replace('/', '--')[-_NAMED:]}"


def _md5s(file: Path, size: int) -> Iterator[bytes]:
    """The MD5 of every part of a file, each of `size` bytes but for the last."""
    total = file.stat().st_size
    with file.open("rb") as content:
        for start in range(0, total, size) if size else (0,):
            digest, left = hashlib.md5(usedforsecurity=False), min(size, total - start)
            while left and (piece := content.read(min(left, _PIECE))):
                digest.update(piece)
                left -= len(piece)
            yield digest.digest()
