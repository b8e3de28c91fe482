"""What a driver says when it loses Ray itself: its cluster's head, or its own machine's part."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cmoe.common.errors import RunError
from cmoe.run.stalls import GOES_ON

LOOK_S = 5.0  # between two looks at the head
PATIENCE_S = 3.0  # for its answer
AWAY_S = 10.0  # without one, until it is said
ENDS_S = os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60")  # noqa: SIM112
"""Without one: Ray ends the driver's process, so that what is to be read is said before."""
LOGS = "`dmesg` there, and session_latest/logs of Ray's folder, may tell why"
_ACTOR = re.compile(r"class_name: (\w+)")


class Head:
    """Looks at the head of the cluster that this process has joined.

    Attributes:
        away: Whether it doesn't answer, as of the last look.
    """

    def __init__(self) -> None:
        self.away = self._told = False
        self._looked = self._answered = time.monotonic()

    def look(self) -> str | None:
        """What is to be said of it now, if anything."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return None
        self._looked = now
        self.away = not _answers()
        if not self.away:
            back, self._told, self._answered = self._told, False, time.monotonic()
            return "Ray's head answers again" if back else None
        if self._told or time.monotonic() - self._answered < AWAY_S:
            return None
        self._told = True
        return (
            f"Ray's head has not answered for {AWAY_S:.0f} s. If it doesn't come back, Ray ends "
            f"this job after {ENDS_S} s; when it is there again, {GOES_ON}"
        )


class Raylet:
    """Looks whether the raylet of this machine is there; Ray may end this process soon behind it.

    Args:
        sockets: The system's list of them; without one nothing is known.
    """

    def __init__(self, sockets: Path = Path("/proc/net/unix")) -> None:
        self._sockets = sockets
        self._there = False

    def look(self) -> str | None:
        """What is to be said of it now, if anything."""
        import ray
        from ray._private import worker

        node: Any = worker.global_worker.node
        if not ray.is_initialized() or node is None:
            return None
        with suppress(OSError):
            before, self._there = self._there, node.raylet_socket_name in self._sockets.read_text()
            if before and not self._there:
                return (
                    f"the raylet of this machine, Ray's part of it, is gone ({LOGS}); Ray ends "
                    f"this job, and {GOES_ON}"
                )
        return None


def _answers() -> bool:
    """Whether the head's server does; also while this process isn't joined to any."""
    import ray
    from ray._private import worker
    from ray.exceptions import RayError

    if not ray.is_initialized():
        return True
    head: Any = worker.global_worker
    try:
        head.gcs_client.internal_kv_exists(b"cmoe", b"cmoe", timeout=PATIENCE_S)
    except (RayError, OSError):
        return False
    return True


@contextmanager
def losses_told() -> Iterator[None]:
    """Turn what Ray raises in the body, where a part of itself is lost, into a sentence.

    Raises:
        RunError: Says what was lost, and how the work goes on.
    """
    from ray.exceptions import RayActorError, RayError, RayTaskError

    from cmoe.run.train_failures import LOW_MEMORY, NODE_LOST, death, short

    try:
        yield
    except RayTaskError:  # a failure of what Ray carried
        raise
    except RayError as error:
        said, text = short(error), str(error)
        remedy = "Where a cluster is named (cluster.address), see that its head runs"
        if LOW_MEMORY.search(text):
            remedy = "Free memory on that machine, or lower data.loader_workers or its workers"
        if isinstance(error, RayActorError) and NODE_LOST.search(text):
            said = f"the raylet of the driver's machine died; {LOGS}"
        elif isinstance(error, RayActorError):  # where the driver is
            of = _ACTOR.search(text)
            said = f"the driver's {of[1] if of else 'process'} {death(error.preempted, text)}"
        raise RunError(f"Ray itself was lost: {said.rstrip('.')}. {remedy}; {GOES_ON}") from error
