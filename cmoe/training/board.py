"""The board: an actor between a run's workers and its driver.

In a module of its own: its process imports the whole module, and every run waits for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Board:
    """Where the workers post what happens, and the driver reads it."""

    def __init__(self) -> None:
        self._events: list[Mapping[str, Any]] = []
        self._cause: str | None = None
        self._starts = 0

    def post(self, event: Mapping[str, Any]) -> None:
        """An event for the display."""
        self._events.append(event)

    def take(self) -> list[Mapping[str, Any]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def start(self) -> int:
        """How often rank 0 has started before."""
        self._starts += 1
        return self._starts - 1

    def fail(self, cause: str) -> None:
        """End the run: trying again would end the same."""
        self._cause = self._cause or cause

    def cause(self) -> str | None:
        """Why the run has to end, if it has."""
        return self._cause
