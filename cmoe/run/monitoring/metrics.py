"""A run's figures for Prometheus, on Ray's own metrics.

The driver makes them of what the workers tell it anyway, so that no worker's step waits for them.
The agent of the driver's node exports them; Ray's file of its agents names it.
"""

from __future__ import annotations

import socket
from typing import Any

from cmoe.common import metrics
from cmoe.common.metrics import Metric
from cmoe.common.remote import mirror
from cmoe.run.monitoring.standing import Standing

DRIVER = "driver"
"""Stands for the driver where workers are told by their ranks."""


class RunMetrics:
    """Shows where a run stands; made where Ray is connected.

    Args:
        run: The run's name.
        standing: Where it stands.
    """

    def __init__(self, run: str, standing: Standing) -> None:
        import ray.util.metrics

        self._run, self._standing = run, standing
        self._made: dict[Metric, Any] = {
            each: getattr(ray.util.metrics, each.kind)(each.name, each.text, tag_keys=each.labels)
            for each in metrics.TRAINING
        }
        self._host = socket.gethostname()
        self._phase: dict[str, str] = {}
        self._tokens: dict[str, int] = {}

    def show(self) -> None:
        """Tell Ray how it is now."""
        now = self._standing
        self._set(metrics.TASKS, len(now.tasks))
        self._set(metrics.RESTARTS, len(now.restarts))
        self._set(metrics.WORKERS, len(now.workers))
        self._set(metrics.PROGRESS_AGE, now.quiet)
        self._set(metrics.REMAINING, now.remaining.run())
        for metric, name in (
            (metrics.LOSS, "loss"),
            (metrics.LEARNING_RATE, "learning_rate"),
            (metrics.TOKEN_RATE, "tokens_per_s"),
            (metrics.MEMORY, "memory"),
        ):
            self._set(metric, now.figures.get(name))
        for phase, count in now.tokens.items():
            if more := count - self._tokens.get(phase, 0):
                self._made[metrics.TOKENS].inc(more, {"run": self._run, "phase": phase})
                self._tokens[phase] = count
        if now.place:
            self._show_place()
        self._show_workers()
        for task, score in zip(now.tasks, now.scores, strict=False):
            self._set(metrics.ACCURACY, score / 100, task=task)
        for metric, name in ((metrics.LAST, "last"), (metrics.TRANSFER, "bwt")):
            if (value := now.measures.get(name)) is not None:
                self._set(metric, value / 100)

    def _show_place(self) -> None:
        place = self._standing.place
        index = place["index"]
        task = "" if index < 0 else self._standing.tasks[index]
        phase = {"task": task, "phase": place["phase"]}
        if self._phase and phase != self._phase:
            self._set(metrics.PHASE, 0, **self._phase)
        self._phase = phase
        self._set(metrics.PHASE, 1, **phase)
        self._set(metrics.TASK, index + 1)
        self._set(metrics.STEP, place["step"])
        self._set(metrics.STEPS, place["steps"])

    def _show_workers(self) -> None:
        self._set(metrics.UPLOADS, mirror.waiting(), worker=DRIVER, node=self._host)
        for rank, beat in self._standing.workers.items():
            who = {"worker": str(rank), "node": beat["host"]}
            for metric, name in (
                (metrics.BEAT_AGE, "silent"),
                (metrics.STEP_TIME, "step_s"),
                (metrics.UPLOADS, "uploads"),
                (metrics.CHECKPOINTS, "checkpoints"),
            ):
                self._set(metric, beat.get(name), **who)

    def _set(self, metric: Metric, value: float | None, **labels: str) -> None:
        self._made[metric].set(value, {"run": self._run, **labels})
