"""What a run shows while it goes on: one line on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from cmoe.config import RunConfig
from cmoe.files import Log

LOG = "run.log"
SECONDS_BETWEEN_LINES = 10.0


class Display:
    """Shows a run's events on a stream, in the run's `run.log`, and to W&B where it is asked for.

    Control characters are written to a terminal alone.

    Args:
        config: The run.
        folder: Where it is kept.
        out: Where to show.
    """

    def __init__(self, config: RunConfig, folder: Path, out: TextIO = sys.stdout) -> None:
        self.tasks = config.data.tasks
        self.out = out
        self.live = out.isatty()
        self._log = Log(folder / LOG, lambda text: print(text, file=out, flush=True))
        self._wandb = _wandb_run(config, folder)
        self._phase: tuple[Any, ...] = ()
        self._phase_start = self._first_step = 0.0
        self._from_step = 0
        self._last_line = 0.0
        self._task_times: list[float] = []
        self._task_start = time.time()
        self._open_line = False

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._open_line:
            self.out.write("\r\033[K")
            self._open_line = False
        self.out.write(f"{text}\n")
        self.out.flush()
        self._log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")

    def event(self, event: Mapping[str, Any]) -> None:
        """One event of the worker program."""
        if event["phase"] == "stage":
            self._stage(event["index"], event["results"], event["time"])
            return
        if event["phase"] == "restart":
            self.line(f"start {event['count'] + 1} of the workers: {event['workers']} go on")
            self._phase = ()  # its pace begins anew
            return
        if event["phase"] == "notice":
            self.line(f"a machine leaves; step {event['step']} of {event['steps']} is saved")
            return
        now = event["time"]
        phase = event["index"], event["phase"], event.get("of")
        began = phase != self._phase
        if began:
            self._phase, self._phase_start = phase, now
            self._from_step = event["step"]
        if self._wandb is not None and "loss" in event:
            self._wandb.log({f"{event['phase']}/{event['task']}/loss": event["loss"]})
        text = self._progress(event, now)
        if self.live:
            self.out.write(f"\r\033[K{text}")
            self.out.flush()
            self._open_line = True
        ended = event["step"] == event["steps"]
        if ended or began or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            if self.live and not ended:
                return
            self.line(text)

    def close(self) -> None:
        """Let go of the log and of W&B."""
        self._log.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _progress(self, event: Mapping[str, Any], now: float) -> str:
        index, step, steps = event["index"], event["step"], event["steps"]
        where = "base" if index < 0 else f"task {index + 1}/{len(self.tasks)} {event['task']}"
        text = f"{where}  {event['phase']} {step}/{steps}"
        if "loss" in event:
            text += f"  loss {event['loss']:.3f}"
        if done := step - self._from_step:
            pace = (now - self._phase_start) / done
            text += f"  {pace:.2f} s a step  {_duration(pace * (steps - step))} left"
        if self._task_times:
            mean = sum(self._task_times) / len(self._task_times)
            left = mean * (len(self.tasks) - index) - (now - self._task_start)
            text += f"  (run: about {_duration(max(left, 0))} left)"
        return text

    def _stage(self, index: int, results: Mapping[str, Any], now: float) -> None:
        self._task_times.append(now - self._task_start)
        self._task_start = now
        row = results["located"][index]
        mean = sum(row[: index + 1]) / (index + 1)
        own = row[index]
        self.line(
            f"task {index + 1}/{len(self.tasks)} {self.tasks[index]}: {own:.1f}%; "
            f"mean of the {index + 1} so far {mean:.1f}%"
        )
        if self._wandb is not None:
            accuracy = {f"accuracy/{self.tasks[j]}": row[j] for j in range(index + 1)}
            self._wandb.log({"tasks": index + 1, "accuracy/mean": mean, **accuracy})


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _wandb_run(config: RunConfig, folder: Path) -> Any:
    if config.wandb.mode == "disabled":
        return None
    import wandb

    return wandb.init(
        mode=config.wandb.mode,
        project=config.wandb.project,
        name=config.name,
        id=config.name,
        resume="allow",
        dir=str(folder),
        config=config.as_dict(),
    )
