"""`status.json` of a run's folder: where the run is, for who looks at its files alone.

The driver writes it, and nobody else: at events, and every few seconds while the run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from cmoe.common.run_files import RunFileError, write_json
from cmoe.common.storage import StorageError
from cmoe.folder import STATUS_FORMAT, RunFolder
from cmoe.run.monitoring.standing import Standing

PERIOD_S = 10.0
"""Between two writings, if nothing happens."""
KEPT = 20
"""Restarts that are kept, the latest ones."""

State = Literal["running", "finished", "interrupted", "failed"]
"""How a driver says that its run is."""


class StatusFile:
    """Writes where a run stands.

    Args:
        folder: The run's.
        standing: Where it stands.
        say: Told once if it can't be written.
    """

    def __init__(self, folder: RunFolder, standing: Standing, say: Callable[[str], object]) -> None:
        self._file, self._standing, self._say = folder.status, standing, say
        self._told = False
        self._begun, self._last = time.time(), 0.0
        try:
            before = folder.read_status()
        except RunFileError:
            before = {}  # it is written anew
        self._jobs = before.get("jobs", 0) + 1
        self._restarts = before.get("restarts", [])
        self._restarted = before.get("restarted", 0)

    def tick(self) -> None:
        """Write if it is time to."""
        if time.monotonic() - self._last >= PERIOD_S:
            self.write("running")

    def write(self, state: State, why: str | None = None) -> None:
        """Write now."""
        self._last, now = time.monotonic(), self._standing
        value = {
            "format": STATUS_FORMAT,
            "state": state,
            "why": why,
            "jobs": self._jobs,
            "begun": self._begun,
            "written": time.time(),
            "tasks": list(now.tasks),
            "place": now.place,
            "quiet_s": now.quiet,
            "figures": now.figures | {"step_s": now.remaining.pace},
            "remaining_s": {"phase": now.remaining.phase(), "run": now.remaining.run()},
            "workers": {rank: _worker(beat) for rank, beat in now.workers.items()},
            "restarted": self._restarted + len(now.restarts),
            "restarts": [*self._restarts, *now.restarts][-KEPT:],
        }
        try:
            write_json(self._file, value)
        except StorageError as error:
            if not self._told:
                self._told = True
                self._say(f"{error}; the run goes on without")


def _worker(beat: Mapping[str, Any]) -> dict[str, Any]:
    known = ("host", "pid", "step_s", "silent", "uploads", "checkpoints")
    return {key: beat[key] for key in known if key in beat}
