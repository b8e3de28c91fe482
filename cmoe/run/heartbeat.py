"""A worker's sign of life: where it is, from a thread of its own, to the board.

It asks nothing of the device and of other workers, so that it tells of a worker that is stuck.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from cmoe.common.remote import mirror
from cmoe.common.versions import versions
from cmoe.run.stalls import named, phase

logger = logging.getLogger(__name__)
BEAT_S = 5.0
PLACE = ("index", "phase", "of", "step", "steps")  # of an event
PACKAGE = str(Path(__file__).parents[1])
# Who is here waits for other workers: collectives of torch, of DeepSpeed and of Ray Train.
COLLECTIVES = (
    "torch/distributed/distributed_c10d.py",
    "deepspeed/comm/",
    "ray/train/v2/_internal/execution/collective_impl.py",
    "ray/train/v2/_internal/execution/context.py",
)


class Heartbeat:
    """Tells the board every few seconds where the thread that made it is.

    Args:
        board: The board's actor.
        rank: This worker's.

    Attributes:
        rank: As given.
        host: Name of the worker's machine.
        worker: How the worker is named.
        place: Where it has come to.
        saving: Whether a checkpoint of this worker's is being kept.
    """

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self.rank, self.host = board, rank, socket.gethostname()
        self._thread = threading.get_ident()
        self._about = {"host": self.host, "pid": os.getpid()}
        self.worker = named(rank, {rank: self._about})
        self.saving: Callable[[], bool] = lambda: False
        self.place: Mapping[str, Any] = {}
        self._count = 0
        self._pace = StepTime()
        self._over = threading.Event()

    def reached(self, place: Mapping[str, Any]) -> None:
        """Progress: the worker has come here. It is told with the next beat."""
        self.place, before = {key: place[key] for key in PLACE if key in place}, self.place
        self._count += 1
        self._pace.reached(self.place)
        if phase_of(self.place) != phase_of(before):
            logger.info(phase(self.place))

    def start(self) -> None:
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def beat(self) -> None:
        """Tell the board once."""
        beat = {"place": self.place, "count": self._count, **self._about, "sent": time.time()}
        queues = {"uploads": mirror.waiting(), "checkpoints": int(self.saving())}
        beat |= queues | {"step_s": self._pace.seconds()}
        self._board.beat.remote(self.rank, beat | doing(self._thread))

    def _run(self) -> None:
        self._about |= {"versions": versions()}
        while True:
            self.beat()
            if self._over.wait(BEAT_S):
                return


class StepTime:
    """Seconds of a worker's steps, by the host's clock: nothing waits for the device.

    A step is what a phase counts: of a training an optimizer step, of a pass a batch.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at: tuple[Any, int, float] = (None, 0, 0.0)  # phase, step, when it came there
        self._done = self._told = (0, 0.0)  # steps and their seconds; a whole pair for threads

    def reached(self, place: Mapping[str, Any]) -> None:
        """The worker has come here."""
        if (step := place.get("step")) is None:
            return
        phase = phase_of(place)
        before, since, then = self._at
        if phase == before and step == since:
            return
        now = self._clock()
        if phase == before and step > since:
            steps, seconds = self._done
            self._done = steps + step - since, seconds + now - then
        self._at = phase, step, now

    def seconds(self) -> float | None:
        """Mean of the steps since the last call; None where none ended."""
        (steps, seconds), (before, then) = self._done, self._told
        self._told = steps, seconds
        return (seconds - then) / (steps - before) if steps > before else None


def phase_of(place: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a place is of; its step aside."""
    return place.get("index"), place.get("phase"), place.get("of")


def doing(thread: int) -> dict[str, Any]:
    """Where a thread of this process is, from its stack.

    Returns:
        `at`: the innermost function of this package, and what it has called elsewhere; `waits`:
        whether that is a collective, which waits for other workers.
    """
    frame = sys._current_frames().get(thread)
    inner, waits = frame, False
    while frame is not None and not _file(frame).startswith(PACKAGE):
        waits = waits or any(part in _file(frame) for part in COLLECTIVES)
        frame = frame.f_back
    if frame is None:
        return {"at": _name(inner) if inner is not None else "", "waits": waits}
    if frame is inner:
        return {"at": _name(frame), "waits": waits}
    assert inner is not None
    return {"at": f"{_name(frame)} > {_name(inner)}", "waits": waits}


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def _name(frame: FrameType) -> str:
    return f"{frame.f_code.co_name} ({Path(_file(frame)).name}:{frame.f_lineno})"
