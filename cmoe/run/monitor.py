"""The driver's view of its workers: what the board tells, and what lasts without being told."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from cmoe.run.display import Display
from cmoe.run.heartbeat import BEAT_S
from cmoe.run.monitoring.alike import differing
from cmoe.run.monitoring.lost_ray import Head, Raylet
from cmoe.run.monitoring.metrics import RunMetrics
from cmoe.run.stalls import (
    QUIET_S,
    WAITING_S,
    Spaced,
    named,
    needed,
    silent,
    stalled,
    waiting,
)

POLL_SECONDS = 0.5
PATIENCE_S = 5.0  # for an answer, until there is another look


class Follower:
    """Shows the board's events, and says while nothing happens why that is.

    Args:
        board: The board's actor.
        display: Where to show.
        metrics: Where to show it as figures.
        workers: How many the group needs at least.
        each: What one asks for, by Ray's resources.
    """

    def __init__(
        self,
        board: Any,
        display: Display,
        metrics: RunMetrics,
        workers: int,
        each: Mapping[str, float],
    ) -> None:
        self._board, self._display, self._metrics = board, display, metrics
        self._head, self._raylet = Head(), Raylet()
        self._least, self._each = workers, each
        self._workers = workers  # that are asked for at the moment
        self._running = False
        self._since = time.monotonic()  # when it came to be so
        self._stall, self._wait = Spaced(QUIET_S), Spaced(WAITING_S)
        self._silence, self._answered = Spaced(QUIET_S), time.monotonic()  # the board's
        self._open: dict[str, Any] = {}  # what it was asked
        self._stalled = ""  # as of the last look
        self._beats: Mapping[int, Mapping[str, Any]] = {}
        self._heard = self._shown = 0.0  # when beats were asked for, and figures shown
        self._differ: set[tuple[int, str]] = set()  # what was told of

    def look(self) -> None:
        """Show what is new."""
        self._display.tick()
        for news in filter(None, (self._raylet.look(), self._head.look())):
            self._display.line(news)
        if (events := self._asked("take")) is None:
            return
        for event in events:
            self._event(event)
        lasted = time.monotonic() - self._since
        if self._running:
            self._watch(lasted)
        else:
            self._display.standing.look(lasted, {})
            if not self._head.away and self._wait.due(lasted) and (text := self._waiting(lasted)):
                self._display.line(text)
        if events or time.monotonic() >= self._shown + BEAT_S:
            self._shown = time.monotonic()
            self._metrics.show()

    def _watch(self, lasted: float) -> None:
        """Say if nothing moves, though there are workers, and what differs between them."""
        if (quiet := self._asked("quiet")) is None:
            return
        quiet = min(quiet, lasted)
        if quiet >= QUIET_S or time.monotonic() >= self._heard + BEAT_S:  # as often as they come
            if (beats := self._asked("beats")) is None:
                return
            self._beats, self._heard = beats, time.monotonic()
            for key, text in differing(beats).items():
                if key not in self._differ:
                    self._differ.add(key)
                    self._display.line(text)
        self._display.standing.look(quiet, self._beats)
        self._stalled = stalled(quiet, self._beats, self._display.tasks) if quiet >= QUIET_S else ""
        if self._stall.due(quiet):
            self._display.line(self._stalled)

    def _asked(self, method: str) -> Any:
        """What a method of the board gives; None while nothing comes, which is told in time.

        Ray may never say that a machine's part of it is lost, where a clock was set back.
        """
        import ray
        from ray.exceptions import GetTimeoutError

        asked = self._open.pop(method, None) or getattr(self._board, method).remote()
        try:
            found = ray.get(asked, timeout=PATIENCE_S)
        except GetTimeoutError:
            self._open[method] = asked  # asked again, its events would be lost
            found = None
        now = time.monotonic()
        self._answered = now if found is not None else self._answered
        if self._silence.due(lasted := now - self._answered):
            self._display.line(silent(lasted, os.getpid()))
        return found

    def _event(self, event: Mapping[str, Any]) -> None:
        match event["phase"]:
            case "scheduling":
                self._workers = event["workers"]
                self._state(running=False)
            case "running":
                self._state(running=True)
            case "resizing":
                self._display.lost(f"the group changes to {event['workers']} workers")
            case "failed":
                self._failed(event["causes"], event["beats"])
            case _:
                self._display.event(event)

    def _state(self, *, running: bool) -> None:
        if running != self._running:
            self._running, self._since = running, time.monotonic()
            self._beats, self._heard = {}, 0.0  # others come

    def _failed(
        self, causes: list[tuple[int | None, str]], beats: Mapping[int, Mapping[str, Any]]
    ) -> None:
        said = [text if r is None else f"{named(r, beats)} {text}" for r, text in causes]
        self._display.lost("; ".join(said))
        if self._stalled:
            self._display.line(f"before that: {self._stalled}")
        self._stalled, self._workers = "", self._least
        self._state(running=False)

    def _waiting(self, lasted: float) -> str | None:
        """What the workers wait for; None while nothing is unusual."""
        import ray
        from ray.util import placement_group_table

        alike = [self._each] * self._workers
        groups = placement_group_table().values()
        states = {g["state"] for g in groups if [*g["bundles"].values()] == alike}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        free = ray.available_resources()
        lacks = any(free.get(n, 0) < amount * self._workers for n, amount in self._each.items())
        if "PENDING" in states or (lacks and "CREATED" not in states):
            return waiting(lasted, self._workers, self._each, nodes, free)
        if lasted < QUIET_S:
            return None
        return f"{needed(self._workers, self._each)} have been starting for {lasted:.0f} s"


@contextmanager
def following(follower: Follower) -> Iterator[None]:
    """Look time and again while the body runs, and once more when it ends."""
    from ray.exceptions import RayError

    over = threading.Event()

    def follow() -> None:
        with suppress(RayError):  # the body hears of it as well
            while not over.wait(POLL_SECONDS):
                follower.look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(RayError):
            follower.look()
