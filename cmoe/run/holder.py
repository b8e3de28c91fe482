"""Who holds a run's lease: a process of a machine, and its last sign of life."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from getpass import getuser
from pathlib import Path
from typing import Any
from uuid import uuid4

STOPPED = "Tt"  # states of a process that a signal, or who traces it, has stopped

_TIME = "%Y-%m-%d %H:%M:%S UTC"


@dataclass(frozen=True)
class Holder:
    """Who holds a lease; the contents of its file.

    Attributes:
        token: Of this holding alone.
        host: The machine's name.
        machine: Its start and its space of processes: where `pid` means something.
        pid: The process.
        started: When it started, in ticks of its machine.
        user: Who runs it.
        job: Ray's submission id, if it was submitted.
        since: UTC, by the holder's clock, as `renewed`.
        renewed: At the last sign of life.
        beats: How many there were.
        released: Whether it has come to its end.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    user: str
    job: str
    since: str
    renewed: str
    beats: int = 0
    released: bool = False

    def __str__(self) -> str:
        job = f", Ray job {self.job}" if self.job else ""
        return (
            f"process {self.pid} of {self.user} on {self.host}{job}, since {self.since}, last "
            f"renewed {self.renewed}"
        )

    @classmethod
    def here(cls) -> Holder:
        """This process, now."""
        now, pid = _now(), os.getpid()
        try:
            user = getuser()
        except (KeyError, OSError):
            user = str(os.getuid())
        started = _started(pid) or ""
        return cls(
            uuid4().hex, socket.gethostname(), _machine(), pid, started, user, _job(), now, now
        )

    def begun(self) -> Holder:
        """The same, holding it from now on."""
        now = _now()
        return replace(self, since=now, renewed=now)

    def again(self) -> Holder:
        """The same with another sign of life, now."""
        return replace(self, beats=self.beats + 1, renewed=_now())

    def age(self) -> float:
        """Seconds since its last sign of life, as far as its clock agrees with this one."""
        then = datetime.strptime(self.renewed, _TIME).replace(tzinfo=UTC)
        return time.time() - then.timestamp()

    def dead(self) -> bool | None:
        """Whether its process has gone; None if that can't be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # another user's
        started = _started(self.pid)  # None where another user's can't be looked up
        return None if started is None else started != self.started

    def way_out(self) -> str:
        """What helps who is refused because of it."""
        if self.machine == _machine() and (_status(self.pid) or "?")[0] in STOPPED:
            return (
                f"That process is stopped: `kill -CONT {self.pid}` lets it go on, "
                f"`kill -KILL {self.pid}` ends it"
            )
        return "Wait for it or end it, or give this run another name"


def _now() -> str:
    return datetime.now(UTC).strftime(_TIME)


def _machine() -> str:
    """This start of this machine and this space of process numbers; empty where none is known."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {socket.gethostname()}"
    return ""


def _started(pid: int) -> str | None:
    """When a process of this machine started; empty where it has ended and nobody has been told,
    None where it can't be looked up.
    """
    if (fields := _status(pid)) is None:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def _status(pid: int) -> list[str] | None:
    """What the system says of a process of this machine, from its state on; None where nothing."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None


def _job() -> str:
    """Ray's id of the job that this process was submitted as."""
    with suppress(ValueError, AttributeError):
        config: Any = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(config.get("metadata", {}).get("job_submission_id", ""))
    return ""
