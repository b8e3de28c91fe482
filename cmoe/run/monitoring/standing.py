"""Where a run stands, as its driver hears it: what `status.json` and Ray's metrics tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmoe.run.heartbeat import PLACE
from cmoe.run.remaining_time import Remaining

Beats = Mapping[int, Mapping[str, Any]]


class TokenCount:
    """Tokens that a training goes over, from one of its events to the next."""

    def __init__(self) -> None:
        self._last: tuple[tuple[str, str], int, float] | None = None

    def since(self, event: Mapping[str, Any]) -> tuple[int, float]:
        """Tokens since the training's event before, and seconds; 0 seconds at its first event.

        A training that goes on from its checkpoint counts from there.
        """
        training = event["phase"], event["task"]
        tokens, now, last = event["tokens"], event["time"], self._last
        self._last = training, tokens, now
        if last is None or last[0] != training:
            return 0 if event.get("from") else tokens, 0.0
        if now <= last[2] or tokens <= last[1]:
            return 0, 0.0
        return tokens - last[1], now - last[2]


class Standing:
    """What is known of a run at the moment.

    Args:
        tasks: The stream's.
        remaining: Estimates what is left; follows the same events.

    Attributes:
        place: Of the last event: `index`, `phase`, `step`, `steps`, and `of` of an evaluation.
        figures: Of the last step that was logged: `loss`, `learning_rate`, `tokens_per_s` of all
            workers, `memory` in bytes.
        tokens: That trainings went over since this driver began, by phase.
        scores: Of the tasks learned so far, in percent.
        measures: Of the stream so far.
        quiet: Seconds since any worker's progress.
        workers: Every worker's last beat, by rank.
        restarts: When the workers were started again in this job, and why.
    """

    def __init__(self, tasks: Sequence[str], remaining: Remaining) -> None:
        self.tasks, self.remaining = tasks, remaining
        self.place: dict[str, Any] = {}
        self.figures: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.scores: Sequence[float] = ()
        self.measures: Mapping[str, float | None] = {}
        self.quiet = 0.0
        self.workers: Beats = {}
        self.restarts: list[dict[str, Any]] = []
        self._counted = TokenCount()
        self._cause = ""

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the worker program."""
        if event["phase"] == "stage":
            index, results = event["index"], event["results"]
            self.scores, self.measures = results["located"][index][: index + 1], results["metrics"]
        elif event["phase"] == "restart":
            self.restarts.append({"time": event["time"], "why": self._cause})
            self._cause, self.figures = "", {}
        elif event["phase"] != "notice":
            self.place = {key: event[key] for key in PLACE if key in event}
            self._figures(event)

    def _figures(self, event: Mapping[str, Any]) -> None:
        if "loss" not in event:
            self.figures = {}
            return
        told = ("loss", "learning_rate", "memory")
        self.figures = {key: event[key] for key in told if key in event}
        tokens, seconds = self._counted.since(event)
        if seconds:
            self.figures["tokens_per_s"] = tokens / seconds
        self.tokens[event["phase"]] = self.tokens.get(event["phase"], 0) + tokens

    def lost(self, why: str) -> None:
        """Take in why the workers have to be started again."""
        self._cause = why

    def look(self, quiet: float, workers: Beats) -> None:
        """Take in the board's view of the workers; without any, none is at work."""
        self.quiet, self.workers = quiet, workers
