"""What a run shows while it goes on: one line on a terminal, a line now and then in a log file."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TextIO

from cmoe.common.files import Log
from cmoe.common.log_lines import in_json, log_line
from cmoe.config.tree import RunConfig
from cmoe.folder import RunFolder
from cmoe.run.monitoring.standing import Standing
from cmoe.run.monitoring.status_file import StatusFile
from cmoe.run.remaining_time import Remaining
from cmoe.run.stalls import duration, stage
from cmoe.run.trackers import Tracking, ended

SECONDS_BETWEEN_LINES = 10.0


class Display:
    """Shows a run's events on a stream, in its `run.log` and its `status.json`; tells its trackers.

    Control characters are written to a terminal alone.

    Args:
        config: The run.
        folder: Where it is kept.
        remaining: Estimates what is left.
        out: Where to show.

    Attributes:
        standing: Where the run stands.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        remaining: Remaining,
        out: TextIO = sys.stdout,
    ) -> None:
        self.tasks = config.data.tasks
        self.out = out
        self.live = out.isatty() and not in_json()
        self._about = {"run": config.name, "worker": "driver", "node": socket.gethostname()}
        self._log = Log(folder.log, self._show)
        self._phase: tuple[Any, ...] = ()
        self._remaining = remaining
        self.standing = Standing(self.tasks, remaining)
        self._status = StatusFile(folder, self.standing, self.line)
        self._last_line = 0.0
        self._start = time.monotonic()
        self._open_line = False
        self._again = False  # whether the workers have started before
        self._trackers = Tracking(config, folder, self.line)

    def __enter__(self) -> Display:
        self._status.write("running")
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Let go of the trackers, say how the run has ended, and let go of the log."""
        self._trackers.close(error)
        said = ending(error, time.monotonic() - self._start)
        self.line(said)
        self._status.write(ended(error), said)
        self._log.close()

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._open_line:
            self.out.write("\r\033[K")
            self._open_line = False
        self._show(text)
        self._log.write(stamped(text))

    def _show(self, text: str) -> None:
        place, about = self.standing.place, dict(self._about)
        if place:
            about |= {"phase": place["phase"]}
            if place["index"] >= 0:
                about["task"] = self.tasks[place["index"]]
        self.out.write(f"{log_line(text, **about)}\n")
        self.out.flush()

    def tick(self) -> None:
        """Called time and again, whether anything happens or not."""
        self._status.tick()

    def lost(self, why: str) -> None:
        """The workers have to be started again."""
        self.line(why)
        self.standing.lost(why)
        self._status.write("running")

    def event(self, event: Mapping[str, Any]) -> None:
        """One event of the worker program."""
        self._remaining.event(event)
        self.standing.event(event)
        if event["phase"] in ("stage", "restart", "notice"):
            self._status.write("running")
        if event["phase"] == "stage":
            self._stage(event["index"], event["results"])
            return
        if event["phase"] == "restart":
            self._again = True
            self.line(f"start {event['count'] + 1} of the workers: {event['workers']} go on")
            self._phase = ()  # it is shown anew
            return
        if event["phase"] == "notice":
            self.line(f"a machine leaves; step {event['step']} of {event['steps']} is saved")
            return
        if seconds := event.get("startup"):
            self._started(seconds)
        now = event["time"]
        phase = event["index"], event["phase"], event.get("of")
        began = phase != self._phase
        self._phase = phase
        self._trackers.progress(event)
        text = self._progress(event)
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

    def _started(self, seconds: Mapping[str, float]) -> None:
        """Where the time before the first step went; what isn't the workers' own was Ray's."""
        parts = [f"{name} {lasted:.1f} s" for name, lasted in seconds.items()]
        if not self._again:
            parts = [f"Ray {time.monotonic() - self._start - sum(seconds.values()):.1f} s", *parts]
        self.line(f"the workers have started: {', '.join(parts)}")

    def _progress(self, event: Mapping[str, Any]) -> str:
        step, steps = event["step"], event["steps"]
        text = f"{stage(event['index'], self.tasks)}  {event['phase']} {step}/{steps}"
        if "loss" in event:
            text += f"  loss {event['loss']:.3f}"
        if (pace := self._remaining.pace) is not None:
            text += f"  {pace:.2f} s a step"
        if step < steps and (left := self._remaining.phase()) is not None:
            text += f"  {duration(left)} left"
        if left := self._remaining.run():
            text += f"  (run: about {duration(left)} left)"
        return text

    def _stage(self, index: int, results: Mapping[str, Any]) -> None:
        row = results["located"][index]
        mean = sum(row[: index + 1]) / (index + 1)
        own = row[index]
        self.line(
            f"task {index + 1}/{len(self.tasks)} {self.tasks[index]}: {own:.1f}%; "
            f"mean of the {index + 1} so far {mean:.1f}%"
        )
        self._trackers.stage(index, results)


def ending(error: BaseException | None, passed: float) -> str:
    """How a run has ended, for its log."""
    if error is None:
        return f"finished after {duration(passed)}"
    if isinstance(error, KeyboardInterrupt | SystemExit):
        signals = [text for text in error.args if isinstance(text, str)]
        return f"interrupted{f' ({signals[0]})' if signals else ''}; the same command goes on"
    return f"failed: {error if isinstance(error, Exception) else repr(error)}"


def refused(folder: RunFolder, error: Exception) -> None:
    """Note in a run's log that the run was not resumed; where there is no log, nothing."""
    if folder.log.is_file():
        with open(folder.log, "a", encoding="utf-8") as log:
            log.write(stamped(f"refused: {error}"))


def stamped(text: str) -> str:
    """A line of the log."""
    return f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n"
