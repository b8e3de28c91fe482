"""A worker's sign of life: where it is, from a thread of its own, to the board.

It asks nothing of the device and of other workers, so that it tells of a worker that is stuck.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from cmoe.common.versions import versions
from cmoe.run.stalls import named

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
        worker: How the worker is named.
    """

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self._rank = board, rank
        self._thread = threading.get_ident()
        self._about = {"host": socket.gethostname(), "pid": os.getpid()}
        self.worker = named(rank, {rank: self._about})
        self._place: Mapping[str, Any] = {}
        self._count = 0
        self._over = threading.Event()

    def reached(self, place: Mapping[str, Any]) -> None:
        """Progress: the worker has come here. It is told with the next beat."""
        self._place = {key: place[key] for key in PLACE if key in place}
        self._count += 1

    def start(self) -> None:
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _beat(self) -> None:
        about = {**self._about, "versions": versions()}
        while True:
            beat = {"place": self._place, "count": self._count, **about, "sent": time.time()}
            self._board.beat.remote(self._rank, beat | doing(self._thread))
            if self._over.wait(BEAT_S):
                return


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
