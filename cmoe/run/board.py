"""The board: an actor between a run's workers and its driver.

In a module of its own: its process imports the whole module, and every run waits for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any


class Board:
    """Where the workers post what happens, and the driver reads it.

    Args:
        clock: Seconds.
        wall: Seconds since the epoch.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._wall = clock, wall
        self._epoch = wall() - clock()
        self._events: list[Mapping[str, Any]] = []
        self._cause: str | None = None
        self._starts = 0
        self._beats: dict[int, Mapping[str, Any]] = {}
        self._heard: dict[int, float] = {}
        self._late: dict[int, tuple[int, float]] = {}
        self._moved = clock()

    def post(self, event: Mapping[str, Any]) -> None:
        """An event for the display; its `time` is of one clock, which nobody sets. With `failed` go
        the beats as they are, which the next group's take the place of.
        """
        if event["phase"] == "failed":
            event = {**event, "beats": self.beats()}
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
        heard, late = self._late.get(rank, (0, inf))
        self._late[rank] = heard + 1, min(late, self._wall() - beat["sent"])
        self._beats[rank], self._heard[rank] = beat, now

    def quiet(self) -> float:
        """Seconds since the last event or progress."""
        return self._clock() - self._moved

    def beats(self) -> dict[int, dict[str, Any]]:
        """Every worker's last beat by its rank.

        Returns:
            With `silent`, the seconds since it came, `heard`, how many there were, and `late`, the
            seconds that this machine's clock was ahead of the worker's when the quickest came.
        """
        now = self._clock()
        beats = {}
        for rank, beat in self._beats.items():
            heard, late = self._late[rank]
            more = {"silent": now - self._heard[rank], "heard": heard, "late": late}
            beats[rank] = {**beat, **more}
        return beats

    def start(self) -> int:
        """How often rank 0 has started before."""
        self._starts += 1
        self._beats, self._heard, self._late = {}, {}, {}  # of workers that are gone
        return self._starts - 1

    def fail(self, cause: str) -> None:
        """End the run: trying again would end the same."""
        self._cause = self._cause or cause

    def cause(self) -> str | None:
        """Why the run has to end, if it has."""
        return self._cause
