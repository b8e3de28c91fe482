"""A folder to work in, kept on a local disk or on S3.

Of one on S3 there is a copy on this machine. What is written into the copy is carried to S3 by a
thread, file by file as they were written, so that a file is there only when those before it are.
Work doesn't wait for it; whoever leaves the folder does.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cmoe.files import whole
from cmoe.storage import filesystem, is_remote

PERIOD_S = 2.0  # between two looks for what was written


class StorageError(Exception):
    """What was written can't be kept; says where, why, and what is there."""


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
    with tempfile.TemporaryDirectory(prefix="cmoe-") as copy:
        mirror = _Remote(url, Path(copy), apart)
        mirror.start()
        try:
            yield mirror
        except BaseException:
            mirror.stop()
            raise
        mirror.finish()


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


class _Remote(Mirror):
    def __init__(self, url: str, folder: Path, apart: Sequence[str]) -> None:
        super().__init__(folder)
        self.url, self._apart = url, set(apart)
        self._fs, self._root = filesystem(url)
        self._fetched: dict[str, Any] = {}  # by the storage's own tag
        self._known: dict[str, tuple[int, int]] = {}  # the copy's files as they are there
        self._mine: set[str] = set()  # carried from here
        self._lock = threading.Lock()  # a file is fetched or carried
        self._failure: StorageError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="mirror", daemon=True)

    def fetch(self, *names: str) -> None:
        try:
            for path, info in self._fs.find(self._root, detail=True).items():
                name = path.removeprefix(self._root).lstrip("/")
                top = name.partition("/")[0]
                if top in self._apart or (names and top not in names):
                    continue
                with self._lock:
                    self._fetch(name, path, (info.get("ETag"), info.get("LastModified")))
        except Exception as error:  # botocore's own are of many kinds
            raise StorageError(f"{self.url}: can't be read: {error!r}") from error

    def _fetch(self, name: str, path: str, tag: Any) -> None:
        file = self.folder / name
        if self._fetched.get(name) == tag or name in self._mine:
            return
        if file.exists() and _state(file) != self._known.get(name):
            return  # written here since
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as beside:
            self._fs.get_file(path, str(beside))
        self._fetched[name], self._known[name] = tag, _state(file)

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Carry nothing more."""
        self._ended.set()

    def finish(self) -> None:
        """Wait until all is there."""
        self._ended.set()
        self._thread.join()
        self.check()
        self._put()
        self.check()

    def _carry(self) -> None:
        while self._failure is None and not self._ended.wait(PERIOD_S):
            self._put()

    def _put(self) -> None:
        for _, name in sorted((state, name) for name, state in self._changed().items()):
            file = self.folder / name
            try:
                with self._lock:
                    state = _state(file)  # before it is read: what is appended then is seen later
                    self._fs.put_file(str(file), f"{self._root}/{name}")
                    self._known[name] = state
                    self._mine.add(name)
            except Exception as error:  # botocore's own are of many kinds
                if not file.is_file():
                    continue
                self._failure = StorageError(
                    f"{self.url}/{name}: can't be written: {error!r}. What was saved before is "
                    "there; the same command goes on from it"
                )
                return

    def _changed(self) -> dict[str, tuple[int, int]]:
        found = {}
        for file in self.folder.rglob("*"):
            if file.is_symlink() or not file.is_file() or file.suffix == ".tmp":
                continue
            name = file.relative_to(self.folder).as_posix()
            try:
                state = _state(file)
            except FileNotFoundError:
                continue
            if self._known.get(name) != state:
                found[name] = state
        return found


def _state(file: Path) -> tuple[int, int]:
    """When a file was written, and its size."""
    found = file.stat()
    return found.st_mtime_ns, found.st_size
