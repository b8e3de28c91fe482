"""What a vLLM engine does at the moment, as its own statistics tell it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats


class Load:
    """How many answers run and wait.

    Attributes:
        running: Number of answers under way.
        waiting: Number of prompts that wait for a place.
    """

    def __init__(self) -> None:
        self.running = self.waiting = self._open = 0
        self._told = time.monotonic()

    @contextmanager
    def answer(self) -> Iterator[None]:
        """Around each answer."""
        if not self._open:
            self._told = time.monotonic()
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def silent_s(self) -> float:
        """Seconds since the last step, where answers are under way; else 0."""
        return time.monotonic() - self._told if self._open else 0.0

    def logger(self, vllm_config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        """What vLLM tells."""
        return _Logger(vllm_config, engine_index, self)

    def told(self, stats: SchedulerStats) -> None:
        self.running, self.waiting = stats.num_running_reqs, stats.num_waiting_reqs
        self._told = time.monotonic()


class _Logger(StatLoggerBase):
    def __init__(self, vllm_config: VllmConfig, engine_index: int, load: Load) -> None:
        self._load = load

    def record(self, scheduler_stats: SchedulerStats | None, *_: Any, **__: Any) -> None:
        if scheduler_stats is not None:
            self._load.told(scheduler_stats)

    def log_engine_initialized(self) -> None:
        """Ray Serve logs it."""
