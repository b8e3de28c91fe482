"""One job at a time drives a run: whoever does holds its lease, on a local disk or on S3.

    <run>/lease/0001.json    who holds it, with a counter that the holder raises every few seconds

A lease is taken by creating the file of the next number, which only one can; the highest number
counts, and numbers never go back, so that a holder that was stopped for an hour finds out. Its file
stays and says that it was released. A holder that died doesn't block: on its own machine its
process is looked up, elsewhere its counter is watched. Clocks are shown, never compared.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from cmoe.common.errors import KnownError
from cmoe.common.exclusive import create, require_exclusive
from cmoe.common.files import whole
from cmoe.common.parsing import parse_json
from cmoe.common.storage import (
    FIRST_ATTEMPTS,
    StorageError,
    explained,
    filesystem,
    is_local,
    is_missing,
)
from cmoe.common.storage_errors import LISTED, READ, WRITTEN
from cmoe.folder import LEASE
from cmoe.run.holder import Holder

BEAT_S = 6.0
"""Between two signs of life."""

LATE_S = 2.0
"""That one may come late."""

EXPIRY_S = 30.0
"""Without one: the lease may be taken over."""

AWAY_S = 180.0
"""A holder that can't reach its storage ends then; requests of others wait as long. Who takes over
meanwhile isn't harmed: commits are exclusive, and the holder looks before it goes on.
"""

LOOK_S = 1.0
_FILE = re.compile(r"\d{4,}\.json")


class LeaseError(KnownError):
    """Another job drives the run, or has taken it over; says who."""


@contextmanager
def held(url: str, show: Callable[[str], object] = print) -> Iterator[None]:
    """Drive a run for as long as the body runs, alone.

    Where nothing was begun meanwhile, nothing is left behind.

    A body in the main thread is interrupted, as by Ctrl-C, when the lease is lost.

    Args:
        url: Folder of the run, or `s3://bucket/prefix`.
        show: Told what is waited for.

    Raises:
        LeaseError: Another job drives it, or has taken it over from this one.
        StorageError: The folder can't be written, or no longer.
    """
    lease = _Lease(url)
    lease.take(show)
    beating = threading.Thread(target=lease.beat, name="lease", daemon=True)
    beating.start()
    try:
        try:
            yield
        finally:
            lease.over.set()
            beating.join()
            if lease.lost is None:
                with suppress(StorageError):  # it expires then
                    lease.release()
    except BaseException as error:
        if lease.lost is not None:
            raise lease.lost from error
        raise
    if lease.lost is not None:
        raise lease.lost


def holder_of(url: str) -> Holder | None:
    """Who holds a run's lease, or held it last; None where nobody does, or did. It takes nothing.

    Raises:
        LeaseError: Its file is damaged.
        StorageError: The folder can't be read.
    """
    return _Lease(url).holder()


def alive(urls: Sequence[str], holders: Sequence[Holder | None]) -> list[bool]:
    """Whether the holder of each run's lease is there, as `holder_of` found it; errors as there.

    On this machine its process is looked up. Elsewhere its last sign of life tells; where that
    looks old, which may be the clocks, whether another comes.
    """
    known = [seen(holder) for holder in holders]
    open_ = [number for number, found in enumerate(known) if found is None]
    if open_:
        time.sleep(BEAT_S + LATE_S)
    for number in open_:
        before, now = holders[number], holder_of(urls[number])
        known[number] = now is not None and not now.released and now != before
    return [bool(found) for found in known]


def seen(holder: Holder | None) -> bool | None:
    """Whether a holder is there; None if its last sign of life is too old, or in the future."""
    if holder is None or holder.released:
        return False
    if (dead := holder.dead()) is not None:
        return not dead
    return True if 0 <= holder.age() < EXPIRY_S else None


class _Lease:
    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, root = filesystem(url, attempts=FIRST_ATTEMPTS)
        self._root = f"{root}/{LEASE}"
        folders = [Path(self._root), *Path(self._root).parents] if self._is_local else []
        self._made = [folder for folder in folders if not folder.exists()]  # with the lease
        self.mine = Holder.here()
        self.number = 0
        self.over = threading.Event()
        self.lost: LeaseError | StorageError | None = None
        self._main = threading.current_thread() is threading.main_thread()

    @property
    def _is_local(self) -> bool:
        return is_local(self._fs)

    def take(self, show: Callable[[str], object]) -> None:
        """Become the holder, or raise LeaseError."""
        require_exclusive(self._fs, self._root, self.url)
        while self.number == 0:
            number = max(self._numbers(), default=0)
            if number:
                holder = self._read(number)
                if holder is None:
                    continue  # taken over and removed meanwhile
                if not holder.released and not self._expires(number, holder, show):
                    raise LeaseError(
                        f"{self.url}: another job works on it: {holder}. {holder.way_out()}"
                    )
            self.mine = self.mine.begun()
            data = json.dumps(asdict(self.mine)).encode()
            if create(self._fs, self._path(number + 1), data, self.url):
                self.number = number + 1
        self._remove_older()

    def holder(self) -> Holder | None:
        """Who holds it, or held it last; None where it was never taken."""
        number = max(self._numbers(), default=0)
        return self._read(number) if number else None

    def _expires(self, number: int, holder: Holder, show: Callable[[str], object]) -> bool:
        """Whether a holder is dead: seen at once on this machine, else by watching its counter."""
        dead = holder.dead()
        if dead is not None:
            return dead
        show(f"{self.url}: waiting up to {EXPIRY_S:.0f} s for a sign of life of {holder}")
        end = time.monotonic() + EXPIRY_S
        while time.monotonic() < end:
            time.sleep(LOOK_S)
            found = self._read(number)
            if found is None or found.released:
                return True  # the next look finds what came of it
            if found.beats != holder.beats:
                return False
        return True

    def beat(self) -> None:
        """Show signs of life until it is over, or until the lease is lost."""
        last, told = time.monotonic(), False
        while not self.over.wait(BEAT_S):
            if self.lost is None:
                try:
                    self._renew()
                    last = time.monotonic()
                except StorageError as error:
                    if time.monotonic() - last > (AWAY_S if error.transient else EXPIRY_S):
                        self.lost = type(error)(
                            f"{error}. The run can't be kept alone without its lease; what was "
                            "saved before is there, and the same command goes on from it"
                        )
                except LeaseError as error:
                    self.lost = error
            if self.lost is not None and not told:
                told = self._interrupt()

    def _renew(self) -> None:
        numbers = self._numbers()
        if numbers and max(numbers) > self.number:
            holder = self._read(max(numbers))
            raise LeaseError(f"{self.url}: another job has taken over: {holder}; this one ends")
        if self.number not in numbers:
            raise LeaseError(
                f"{self.url}: its lease was removed, so that another job may begin; this one ends. "
                "The same command goes on with what was saved"
            )
        self.mine = self.mine.again()
        self.write(self.mine)

    def _interrupt(self) -> bool:
        """Wake the body as Ctrl-C does; False where nobody would hear it yet."""
        if not self._main:
            return True  # it learns it at its end
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
            return False
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return True

    def release(self) -> None:
        """Let others begin. The first lease of a run that wasn't begun goes without a trace."""
        if self.number == 1 and self._alone():
            with explained(self.url, WRITTEN):
                self._fs.rm_file(self._path(self.number))
            with suppress(OSError):  # somebody else begins
                for folder in self._made:
                    folder.rmdir()
            return
        self.write(replace(self.mine, released=True))

    def _alone(self) -> bool:
        """Whether the run's folder holds this lease's file and nothing else."""
        root = self._root.rpartition("/")[0]
        with explained(self.url, LISTED):
            names = {path.rpartition("/")[2] for path in self._fs.ls(root, detail=False)}
        return names == {LEASE} and self._numbers() == [self.number]

    def write(self, holder: Holder) -> None:
        """Put a holder's file where this one's is."""
        data, path = json.dumps(asdict(holder)).encode(), self._path(self.number)
        with explained(self.url, WRITTEN):
            if self._is_local:
                with whole(Path(path)) as beside:
                    beside.write_bytes(data)
            else:
                self._fs.pipe_file(path, data)

    def _path(self, number: int) -> str:
        return f"{self._root}/{number:04d}.json"

    def _numbers(self) -> list[int]:
        with explained(self.url, LISTED):
            try:
                paths = self._fs.ls(self._root, detail=False)
            except FileNotFoundError as error:
                if is_missing(error):
                    return []
                raise
        names = (path.rsplit("/", 1)[-1] for path in paths)
        return [int(name.removesuffix(".json")) for name in names if _FILE.fullmatch(name)]

    def _read(self, number: int) -> Holder | None:
        """Who holds or held that number; None where its file has gone."""
        where = f"{self.url}/{LEASE}/{number:04d}.json"
        with explained(where, READ):
            try:
                data = self._fs.cat_file(self._path(number))
            except FileNotFoundError as error:
                if is_missing(error):
                    return None
                raise
        try:
            return Holder(**parse_json(data.decode()))
        except (TypeError, ValueError) as error:
            raise LeaseError(f"{where}: damaged ({error}); remove it if no job runs") from error

    def _remove_older(self) -> None:
        for number in self._numbers():
            if number < self.number:
                with suppress(FileNotFoundError), explained(self.url, WRITTEN):
                    self._fs.rm_file(self._path(number))
