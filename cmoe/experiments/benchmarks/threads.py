"""Workers as threads of one process, over torch's own collectives, and what each of them did.

Counts are exact and the same on any machine. Seconds are those of threads that share one Python.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _set_thread_isolation_mode  # type: ignore[attr-defined]
from torch.testing._internal.distributed.multi_threaded_pg import (
    ProcessLocalGroup,
    _install_threaded_pg,
    _uninstall_threaded_pg,
    flatten_list,
)

from cmoe.common.group import Group

BACKEND = "counted"
OPENED = ("open", "os.listdir", "os.scandir")
"""Events of Python's audit: a file or a folder is read or written."""

_worker = threading.local()


@dataclass
class Counts:
    """What a worker did in one operation.

    Attributes:
        collectives: That it took part in.
        received: Bytes that came to it by them: others' parts of what is gathered, rank 0's of what
            is broadcast, and a sum as often as it is long.
        actors: Calls of actors.
        files: Files and folders that it opened.
        seconds: That it spent there.
    """

    collectives: int = 0
    received: int = 0
    actors: int = 0
    files: int = 0
    seconds: float = 0.0


class Ledger:
    """What one worker did, by operation; the thread that it is of writes into it."""

    def __init__(self) -> None:
        self.counts: defaultdict[str, Counts] = defaultdict(Counts)
        self._operation, self._since = "", time.perf_counter()

    @property
    def now(self) -> Counts:
        """Of the operation that is under way."""
        return self.counts[self._operation]

    def begin(self) -> None:
        """Let its time begin now."""
        self._since = time.perf_counter()

    def enter(self, operation: str) -> str:
        """Begin an operation; the one before it."""
        now = time.perf_counter()
        self.now.seconds += now - self._since
        before, self._operation, self._since = self._operation, operation, now
        return before

    @contextmanager
    def within(self, operation: str) -> Iterator[None]:
        """Count what the body does as another operation."""
        before = self.enter(operation)
        try:
            yield
        finally:
            self.enter(before)


class Asked:
    """An actor whose calls are counted.

    Args:
        actor: Ray's handle, or `Here`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        if is_worker():
            _worker.ledger.now.actors += 1
        return getattr(self._actor, name)


class Here:
    """An object of this process, called as an actor is."""

    def __init__(self, thing: Any) -> None:
        self._thing, self._lock = thing, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return _Method(getattr(self._thing, name), self._lock)


@dataclass(frozen=True)
class _Method:
    call: Callable[..., Any]
    lock: threading.Lock

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return self.call(*args, **kwargs)


def run_workers(ledgers: Sequence[Ledger], work: Callable[[Group, Ledger], None]) -> None:
    """Run `work(group, ledger)` in as many threads as there are ledgers, one for each rank.

    Raises:
        BaseException: What the first worker that failed raised; the others end with it.
    """
    workers = len(ledgers)
    failures: list[BaseException] = []
    store = dist.HashStore()  # type: ignore[attr-defined]

    def member(rank: int, ledger: Ledger) -> None:
        _worker.ledger = ledger
        try:
            if workers > 1:
                dist.init_process_group(BACKEND, rank=rank, world_size=workers, store=store)
            ledger.begin()
            work(Group(rank, workers), ledger)
        except BaseException as error:
            failures.append(error)
            ProcessLocalGroup.exception_handle(error)
        finally:
            ledger.enter("")

    with _threaded():
        threads = [threading.Thread(target=member, args=pair) for pair in enumerate(ledgers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _threaded() -> Iterator[None]:
    """Let every thread have process groups of its own, and files be counted."""
    if not hasattr(dist.Backend, BACKEND.upper()):
        sys.addaudithook(_count_file)  # it stays as long as the process does
        dist.Backend.register_backend(BACKEND, _counted, devices=["cpu"])
    _set_thread_isolation_mode(True)
    _install_threaded_pg()
    ProcessLocalGroup.reset()
    try:
        yield
    finally:
        _uninstall_threaded_pg()
        _set_thread_isolation_mode(False)


def is_worker() -> bool:
    """Whether this thread is a worker's own: its files are counted."""
    return hasattr(_worker, "ledger")


def _count_file(event: str, args: Any) -> None:
    if event in OPENED and is_worker():
        _worker.ledger.now.files += 1


def _counted(store: Any, rank: int, workers: int, timeout: Any) -> _CountedGroup:
    return _CountedGroup(rank, workers)


_Threads: Any = ProcessLocalGroup  # its overloads are more than it has


class _CountedGroup(_Threads):
    """torch's group of threads; every rank's ledger has what came to it."""

    def allreduce(self, tensor_list: Any, *args: Any) -> Any:
        self._count(_bytes(tensor_list))
        return super().allreduce(tensor_list, *args)

    def allgather(self, output_tensors: Any, input_tensor: Any, *args: Any) -> Any:
        self._count(_bytes(output_tensors) - _bytes(input_tensor))
        return super().allgather(output_tensors, input_tensor, *args)

    def broadcast(self, tensor_list: Any, opts: Any) -> Any:
        self._count(0 if self.rank() == opts.rootRank else _bytes(tensor_list))
        return super().broadcast(tensor_list, opts)

    def gather(self, output_tensors: Any, input_tensors: Any, opts: Any) -> Any:
        mine = self.rank() == opts.rootRank
        self._count(_bytes(output_tensors) - _bytes(input_tensors) if mine else 0)
        return super().gather(output_tensors, input_tensors, opts)

    def _count(self, received: int) -> None:
        _worker.ledger.now.collectives += 1
        _worker.ledger.now.received += received


def _bytes(tensors: Any) -> int:
    return sum(t.nbytes for t in flatten_list(tensors) if isinstance(t, Tensor))
