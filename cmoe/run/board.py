"""The board: an actor between a run's workers and its driver.

In a module of its own: its process imports the whole module, and every run waits for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


class Board:
    """Where the workers post what happens, and the driver reads it.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoch = time.time() - clock()
        self._events: list[Mapping[str, Any]] = []
        self._cause: str | None = None
        self._starts = 0
        self._beats: dict[int, Mapping[str, Any]] = {}
        self._heard: dict[int, float] = {}
        self._moved = clock()

    def post(self, event: Mapping[str, Any]) -> None:
        """An event for the display; its `time` is of one clock, which nobody sets."""
        self._moved = self._clock()
        self._events.append({**event, "time": self._epoch + self._moved})

    def take(self) -> list[Mapping[str, Any]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def beat(self, rank: int, beat: Mapping[str, Any]) -> None:
        """A worker's sign of life, as `Heartbeat` sends it."""
        now, before = self._clock(), self._beats.get(rank)
        if before is None or before["count"] != beat["count"]:
            self._moved = now
        self._beats[rank], self._heard[rank] = beat, now

    def look(self) -> dict[str, Any]:
        """How long nothing has moved, and every worker's last beat.

        Returns:
            `quiet`: seconds since the last event or progress; `beats`: by rank, with `silent`, the
            seconds since it came.
        """
        now = self._clock()
        beats = {
            rank: {**beat, "silent": now - self._heard[rank]} for rank, beat in self._beats.items()
        }
        return {"quiet": now - self._moved, "beats": beats}

    def start(self) -> int:
        """How often rank 0 has started before."""
        self._starts += 1
        self._beats, self._heard = {}, {}  # of workers that are gone
        return self._starts - 1

    def fail(self, cause: str) -> None:
        """End the run: trying again would end the same."""
        self._cause = self._cause or cause

    def cause(self) -> str | None:
        """Why the run has to end, if it has."""
        return self._cause
