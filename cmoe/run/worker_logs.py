"""What a worker's log lines are of: its run, its task, its phase, its rank and its machine.

Ray gives workers a handler where its logs are JSON. Everything that is logged there gets the marks.
"""

from __future__ import annotations

import logging

from cmoe.config.tree import RunConfig
from cmoe.run.heartbeat import Heartbeat


class Marks(logging.Filter):
    """Adds to each record where its worker is; a record's own values stay.

    Args:
        config: The run.
        heartbeat: Knows where the worker is.
    """

    def __init__(self, config: RunConfig, heartbeat: Heartbeat) -> None:
        super().__init__()
        self._run, self._tasks, self._heartbeat = config.name, config.data.tasks, heartbeat

    def filter(self, record: logging.LogRecord) -> bool:
        heartbeat = self._heartbeat
        marks = {"run": self._run, "worker": heartbeat.rank, "node": heartbeat.host}
        if "phase" in heartbeat.place:
            marks["phase"] = heartbeat.place["phase"]
        if (index := heartbeat.place.get("index", -1)) >= 0:
            marks["task"] = self._tasks[index]
        for name, value in marks.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def mark_logs(config: RunConfig, heartbeat: Heartbeat) -> None:
    """Mark all that this process logs from now on; errors and arguments as of `Marks`."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(Marks(config, heartbeat))
