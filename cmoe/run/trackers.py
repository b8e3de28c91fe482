"""Where a run's figures can be followed while it goes on: W&B, TensorBoard, MLflow.

The driver logs them. Every tracker works in a thread of its own: one that fails or hangs is told of
once, and the run goes on without it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Full, Queue
from typing import Any, Literal, Protocol

from cmoe.common.errors import RunError
from cmoe.common.packages import lacking
from cmoe.common.run_files import read_object, write_json
from cmoe.common.storage import is_remote
from cmoe.config.tree import RunConfig
from cmoe.folder import RunFolder, by_key
from cmoe.run.monitoring.standing import TokenCount

WAITING = 10_000
"""Points that a tracker may be behind."""
CLOSING_S = 60.0
"""Seconds that a run's end waits for a tracker."""

Ending = Literal["finished", "interrupted", "failed"]


def ended(error: BaseException | None) -> Ending:
    """How a run has ended, by what ended it."""
    if error is None:
        return "finished"
    return "failed" if isinstance(error, Exception) else "interrupted"


@dataclass(frozen=True)
class Point:
    """Values of one moment.

    Attributes:
        axis: What they are drawn over: a phase's steps, or the tasks learned.
        step: Where on it; of an axis each is logged once, however often the run is resumed.
        row: Number of the point, over all axes.
        time: Seconds since the epoch.
        values: By name.
    """

    axis: str
    step: int
    row: int
    time: float
    values: Mapping[str, float]


class Tracker(Protocol):
    """What follows a run; made and used by one thread."""

    def log(self, point: Point) -> None: ...

    def close(self, ending: Ending) -> None: ...


class Tracking:
    """All trackers of a run.

    Args:
        config: The run.
        folder: It is kept in; `tracked.json` says what was logged.
        say: Tells of a tracker that fails.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, say: Callable[[str], object]) -> None:
        self._tasks, self._say = config.data.tasks, say
        self._record = _Record(folder.tracked) if config.followed else None
        self._senders = [
            _Sender(name, partial(TRACKERS[name], config, folder, self._record), say)
            for name in config.followed
        ]
        self._counted = TokenCount()

    def progress(self, event: Mapping[str, Any]) -> None:
        """Log a step of a training; other events are passed over."""
        if self._record is None or "loss" not in event:
            return
        name = f"{event['phase']}/{event['task']}"
        values = {f"{name}/loss": event["loss"], f"{name}/learning_rate": event["learning_rate"]}
        tokens, seconds = self._counted.since(event)
        if seconds:
            values[f"{name}/tokens_per_s"] = tokens / seconds
        if "memory" in event:
            values[f"{name}/memory_gib"] = event["memory"] / 2**30
        self._log(f"{name}/step", event["step"], event["time"], values)

    def stage(self, index: int, results: Mapping[str, Any]) -> None:
        """Log the accuracies and measures after a task."""
        row = results["located"][index][: index + 1]
        values = {f"accuracy/{self._tasks[j]}": value for j, value in enumerate(row)}
        values["accuracy/mean"] = sum(row) / len(row)
        measures = results["metrics"].items()
        values |= {f"metrics/{name}": value for name, value in measures if value is not None}
        self._log("tasks", index + 1, time.time(), values)

    def close(self, error: BaseException | None) -> None:
        """Let go of all trackers; each has `CLOSING_S` for what is left."""
        for sender in self._senders:
            sender.put(ended(error))
        for sender in self._senders:
            sender.join()

    def _log(self, axis: str, step: int, now: float, values: Mapping[str, float]) -> None:
        if self._record is None:
            return
        try:
            row = self._record.advance(axis, step)
        except Exception as error:
            self._record = None
            self._say(f"trackers get nothing more: {error}; the run goes on without")
            return
        if row is not None:
            for sender in self._senders:
                sender.put(Point(axis, step, row, now, values))


class _Record:
    """What was logged of a run, in its folder, so that no step is logged again."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        remedy = "remove it, and trackers get some steps again"
        self._known = read_object(file, remedy, "rows", "steps") if file.is_file() else {}
        self._known = {"rows": 0, "steps": {}, **self._known}

    def advance(self, axis: str, step: int) -> int | None:
        """The row of a step; None where that step, or a later one, was logged before."""
        with self._lock:
            if step <= self._known["steps"].get(axis, 0):
                return None
            self._known["steps"][axis] = step
            self._known["rows"] += 1
            write_json(self._file, self._known)  # first: a kill may cost a step, but repeats none
            return int(self._known["rows"])

    def get(self, key: str) -> Any:
        return self._known.get(key)

    def set(self, key: str, value: Any) -> None:
        with self._lock:
            self._known[key] = value
            write_json(self._file, self._known)


class _Sender:
    """A tracker in its thread.

    Args:
        name: Of the tracker.
        make: Makes it.
        say: Told once, where it fails.
    """

    def __init__(
        self, name: str, make: Callable[[], Tracker], say: Callable[[str], object]
    ) -> None:
        self._name, self._make, self._say = name, make, say
        self._queue: Queue[Point | Ending] = Queue(WAITING)
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, point: Point | Ending) -> None:
        if self._lost.is_set():
            return
        try:
            self._queue.put_nowait(point)
        except Full:
            self._lose(f"it is {WAITING} points behind")

    def join(self) -> None:
        if self._lost.is_set():
            return
        self._thread.join(CLOSING_S)
        if self._thread.is_alive():
            self._lose(f"it hasn't ended after {CLOSING_S:.0f} s")

    def _work(self) -> None:
        try:
            tracker = self._make()
            while not isinstance(item := self._queue.get(), str):
                tracker.log(item)
            tracker.close(item)
        except Exception as error:  # the network's, or a stranger's code's
            self._lose(f"{type(error).__name__}: {error}")

    def _lose(self, why: str) -> None:
        if not self._lost.is_set():
            self._lost.set()
            self._say(f"tracker {self._name} fails, and the run goes on without it: {why}")


# The trackers


class WandbTracker:
    """A run of W&B, whose id is the run's name."""

    def __init__(self, config: RunConfig, folder: RunFolder, _: _Record) -> None:
        import wandb

        self._run = wandb.init(
            mode=config.wandb.mode,
            project=config.wandb.project,
            name=config.name,
            id=config.name,
            resume="allow",
            dir=str(folder.path),
            config=config.as_dict(),
        )
        self._defined: set[str] = set()

    def log(self, point: Point) -> None:
        for name in point.values.keys() - self._defined:
            self._run.define_metric(name, step_metric=point.axis)
            self._defined.add(name)
        row = max(point.row, self._run.step)  # W&B drops what lies behind its own step
        self._run.log({point.axis: point.step, **point.values}, step=row, commit=True)

    def close(self, ending: Ending) -> None:
        self._run.finish(exit_code=0 if ending == "finished" else 1)


class TensorboardTracker:
    """Event files in the run's folder, in `tensorboard/`."""

    def __init__(self, config: RunConfig, folder: RunFolder, _: _Record) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"))

    def log(self, point: Point) -> None:
        for name, value in point.values.items():
            self._writer.add_scalar(name, value, point.step, walltime=point.time)
        self._writer.flush()

    def close(self, ending: Ending) -> None:
        self._writer.close()


class MlflowTracker:
    """A run of MLflow; `tracked.json` keeps its id."""

    _STATUS: Mapping[Ending, str] = {
        "finished": "FINISHED",
        "interrupted": "KILLED",
        "failed": "FAILED",
    }
    _PARAMS = 100  # that MLflow takes at once

    def __init__(self, config: RunConfig, folder: RunFolder, record: _Record) -> None:
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it tells of every table
        uri = mlflow_uri(config)
        self._client = MlflowClient(tracking_uri=uri)
        kept = record.get("mlflow")
        if kept is not None and kept["uri"] == uri:
            self._id: str = kept["run"]
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._begun(config)
        record.set("mlflow", {"uri": uri, "run": self._id})

    def _begun(self, config: RunConfig) -> str:
        from mlflow.entities import Param

        name = config.mlflow.experiment
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        run: str = self._client.create_run(experiment, run_name=config.name).info.run_id
        settings = [Param(key, str(value)) for key, value in by_key(config.as_dict()).items()]
        for first in range(0, len(settings), self._PARAMS):
            self._client.log_batch(run, params=settings[first : first + self._PARAMS])
        return run

    def log(self, point: Point) -> None:
        from mlflow.entities import Metric

        moment = round(1000 * point.time)
        metrics = [
            Metric(re.sub(r"[^\w\-. :/]", "_", name), value, moment, point.step)
            for name, value in point.values.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, ending: Ending) -> None:
        self._client.set_terminated(self._id, self._STATUS[ending])


TRACKERS: Mapping[str, Callable[..., Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorboardTracker,
    "mlflow": MlflowTracker,
}
"""By the names that `trackers` takes."""

_OPTIONAL = {"tensorboard": "tensorboardX", "mlflow": "mlflow"}
"""The modules of those that an extra of the same name brings."""

MLFLOW_URI = "MLFLOW_TRACKING_URI"


def mlflow_uri(config: RunConfig) -> str:
    """Where MLflow keeps a run: `mlflow.uri`, else MLFLOW_TRACKING_URI, else beside the runs."""
    return _given_uri(config) or f"sqlite:///{Path(config.runs).absolute()}/mlflow.db"


def _given_uri(config: RunConfig) -> str | None:
    return config.mlflow.uri or os.environ.get(MLFLOW_URI)


def require_trackers(config: RunConfig) -> None:
    """Refuse trackers that can't work here, before anything is read.

    Raises:
        RunError: A package isn't installed, with the command that installs it; or MLflow has no
            place for a run on S3.
    """
    for name in config.followed:
        if name in _OPTIONAL and (lack := lacking(name, _OPTIONAL[name], name)) is not None:
            raise RunError(f"trackers names {name}, and {lack}")
    if "mlflow" in config.followed and is_remote(config.runs) and not _given_uri(config):
        raise RunError(
            f"trackers names mlflow, and runs is {config.runs!r}, where no database of MLflow can "
            "be; set mlflow.uri to a tracking server's"
        )
