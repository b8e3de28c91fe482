"""A folder to work in, kept on a local disk or on S3.

Of one on S3 there is a copy on this machine. What is written into the copy is carried to S3 by a
thread, file by file as they were written, so that a file is there only when those before it are.
Work doesn't wait for it; whoever leaves the folder does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cmoe.common.files import whole
from cmoe.common.storage import StorageError, explained, filesystem, is_remote, storage_error
from cmoe.common.storage_errors import READ, WRITTEN

PERIOD_S = 2.0  # between two looks for what was written
AGAIN_S = 30.0  # until it is tried again, where it failed
_PREFIX, _ORIGIN = "cmoe-run-", "url"  # of a copy's place, and the file there that says of what

_AT_WORK: list[_Remote] = []


def waiting() -> int:
    """Files that this process's mirrors had still to carry when they last looked."""
    return sum(remote.waiting for remote in _AT_WORK)


@contextmanager
def mirrored(url: str, *, apart: Sequence[str] = ()) -> Iterator[Mirror]:
    """A folder to work in, for as long as the body runs.

    Args:
        url: A path, or `s3://bucket/prefix`.
        apart: Parts of it that others read and write there themselves.

    Raises:
        StorageError: The body has ended well, and what it wrote can't be kept.
    """
    if not is_remote(url):
        yield Mirror(Path(url))
        return
    with _copy_of(url) as copy:
        mirror = _Remote(url, copy, apart)
        mirror.start()
        try:
            yield mirror
        except Exception:
            mirror.end()
            raise
        mirror.end()
        mirror.check()


@contextmanager
def _copy_of(url: str) -> Iterator[Path]:
    """A folder for a copy, which is locked for as long as a process works in it."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as place, _locked(place, fcntl.LOCK_SH):
        Path(place, _ORIGIN).write_text(url, encoding="utf-8")
        copy = Path(place, PurePosixPath(url).name)
        copy.mkdir()
        yield copy


@contextmanager
def _locked(folder: str | Path, kind: int) -> Iterator[None]:
    """Hold a lock on a folder, which ends with its process; BlockingIOError where others do."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Abandoned:
    """A copy on this machine that a killed process has left.

    Attributes:
        folder: Of it.
        url: What it was a copy of.
        files: How many it has.
        size: Bytes, of all of them.
    """

    folder: Path
    url: str
    files: int
    size: int

    def remove(self) -> None:
        """Remove it.

        Raises:
            StorageError: It can't be removed.
        """
        with explained(self.folder, WRITTEN), _locked(self.folder, fcntl.LOCK_EX):
            shutil.rmtree(self.folder)


def abandoned_copies(url: str) -> list[Abandoned]:
    """Copies of what lies at `url` or below it, that nobody on this machine works in."""
    found = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        with suppress(OSError), _locked(folder, fcntl.LOCK_EX):
            origin = Path(folder, _ORIGIN).read_text(encoding="utf-8")
            if f"{origin}/".startswith(f"{url}/"):
                sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
                found.append(Abandoned(folder, origin, len(sizes), sum(sizes)))
    return found


class Mirror:
    """A folder on this machine; of one that is kept elsewhere, the copy.

    Attributes:
        folder: To read and write in; on a local disk it need not be there yet. Files are written
            whole, or only appended to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fetch(self, *names: str) -> None:
        """Bring what others have written; only files and folders of these names, where given."""

    def check(self) -> None:
        """Raise StorageError where what was written can't be kept."""

    def flush(self) -> None:
        """Wait until what was written so far is kept; errors as of `check`."""


class _Remote(Mirror):
    def __init__(self, url: str, folder: Path, apart: Sequence[str]) -> None:
        super().__init__(folder)
        self.url, self._apart = url, set(apart)
        self._fs, self._root = filesystem(url)
        self._fetched: dict[str, Any] = {}  # by the storage's own tag
        self._known: dict[str, tuple[int, int]] = {}  # the copy's files as they are there
        self._mine: set[str] = set()  # carried from here
        self._lock = threading.Lock()  # a file is fetched or carried
        self._putting = threading.Lock()  # one after the other, or the order is lost
        self._failure: StorageError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="mirror", daemon=True)
        self.waiting = 0

    def fetch(self, *names: str) -> None:
        with explained(self.url, READ):
            for path, info in self._fs.find(self._root, detail=True).items():
                if info["type"] != "file":
                    continue  # the folder itself, where it came to be between two of its calls
                name = path.removeprefix(self._root).lstrip("/")
                top = name.partition("/")[0]
                if top in self._apart or (names and top not in names):
                    continue
                with self._lock:
                    self._fetch(name, path, (info.get("ETag"), info.get("LastModified")))

    def _fetch(self, name: str, path: str, tag: Any) -> None:
        file = self.folder / name
        if self._fetched.get(name) == tag or name in self._mine:
            return
        if file.exists() and _state(file) != self._known.get(name):
            return  # written here since
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as beside, explained(f"{self.url}/{name}", READ):
            self._fs.get_file(path, str(beside))
        self._fetched[name], self._known[name] = tag, _state(file)

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        self._put()
        self.check()

    def start(self) -> None:
        _AT_WORK.append(self)
        self._thread.start()

    def end(self) -> None:
        """Carry what is left, and nothing more then."""
        self._ended.set()
        self._thread.join()
        self._put()
        _AT_WORK.remove(self)

    def _carry(self) -> None:
        while not self._ended.wait(PERIOD_S if self._failure is None else AGAIN_S):
            if self._failure is None or self._failure.transient:
                self._put()

    def _put(self) -> None:
        """Carry what was written since, or remember why that can't be."""
        with self._putting:
            name = ""
            try:
                changed = sorted((state, name) for name, state in self._changed().items())
                for done, (_, name) in enumerate(changed):
                    self.waiting = len(changed) - done
                    self._put_file(name)
                self.waiting, self._failure = 0, None
            except Exception as error:
                found = storage_error(error, f"{self.url}/{name}", WRITTEN)
                kind, why = (StorageError, repr(error)) if found is None else (type(found), found)
                self._failure = kind(
                    f"{why}. What was saved before is there; the same command goes on from it"
                )

    def _put_file(self, name: str) -> None:
        file = self.folder / name
        with self._lock:
            try:
                state = _state(file)  # before it is read: what is appended then is seen later
                if self._known.get(name) == state:
                    return  # fetched meanwhile
                self._fs.put_file(str(file), f"{self._root}/{name}")
            except FileNotFoundError:
                if file.is_file():
                    raise
                return  # gone meanwhile
            self._known[name] = state
            self._mine.add(name)

    def _changed(self) -> dict[str, tuple[int, int]]:
        found = {}
        for folder, _, names in os.walk(self.folder):
            for file in (Path(folder, name) for name in names):
                if file.is_symlink() or file.suffix == ".tmp":
                    continue
                name = file.relative_to(self.folder).as_posix()
                with suppress(FileNotFoundError):  # gone meanwhile
                    if self._known.get(name) != (state := _state(file)):
                        found[name] = state
        return found


def _state(file: Path) -> tuple[int, int]:
    """When a file was written, and its size."""
    found = file.stat()
    return found.st_mtime_ns, found.st_size
