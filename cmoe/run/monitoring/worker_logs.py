"""What a worker's log lines are of: its run, its task, its phase, its rank and its machine.

Ray Train writes what a worker logs to `logs/train/ray-train-app-*` of Ray's session, as JSON, and
to the worker's stderr, as plain text, or as JSON where the driver's lines are.
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


def mark_logs(config: RunConfig, heartbeat: Heartbeat, *, in_json: bool) -> None:
    """Mark all that this process logs from now on.

    Args:
        config: The run.
        heartbeat: Knows where the worker is.
        in_json: Whether its stderr is to be JSON.
    """
    from ray._common.filters import CoreContextFilter
    from ray._common.formatters import JSONFormatter
    from ray._private.log import PlainRayHandler

    for name in ("", "ray.train"):
        logger = logging.getLogger(name)
        if in_json:
            for handler in logger.handlers[:]:
                if isinstance(handler, PlainRayHandler):  # it has a format of its own
                    logger.removeHandler(handler)
            console = logging.StreamHandler()
            console.setFormatter(JSONFormatter())
            console.addFilter(CoreContextFilter())
            logger.addHandler(console)
        for handler in logger.handlers:
            handler.addFilter(Marks(config, heartbeat))
