"""A process that has imported what Ray's workers need, and forks for each of them.

A job on Ray starts eight processes of Python, and most of their time goes into imports of torch
and transformers. Here that happens once: `forks/sitecustomize.py` sends the workers that Ray starts
to this process. A fork is a process like any other: it can be stopped, killed and lost.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any

from support.paths import ROOT

# Not Ray: it takes its settings from the environment when it is imported, so each fork does that.
# Nor cmoe, of which a job may bring its own copy; it is only asked what else it imports.
IMPORTED = (
    "torch.distributed",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
    "deepspeed",
    "peft",
    "pandas",
    "pyarrow.fs",
    "pydantic",
    "aiohttp",
)
OWN = ("cmoe.run.worker", "cmoe.run.stream")
SOCKET, PREFIX = "CMOE_TEST_FORKING", "CMOE_TEST_PREFIX"
FORKS = Path(__file__).with_name("forks")
PYTHONPATH = os.pathsep.join(map(str, (FORKS, ROOT, ROOT / "tests")))


@contextmanager
def forking() -> Iterator[dict[str, str]]:
    """The environment in which Ray's workers are forks, as long as the body runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "socket"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(64)  # who asks while it still imports waits
            process = subprocess.Popen(
                [sys.executable, "-m", "support.forking", str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for the tests
                env={**os.environ, "PYTHONPATH": PYTHONPATH},
            )
        try:
            yield {SOCKET: path, PREFIX: sys.prefix, "PYTHONPATH": PYTHONPATH}
        finally:
            process.communicate()  # the end of its input ends it


class ForkServer:
    """Forks for everybody who connects to a socket, until the standard input ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener, self._events = listener, DefaultSelector()
        self._when(0, lambda: None)
        self._when(listener, self._fork)

    def serve(self) -> dict[str, Any] | None:
        """Returns in a fork, with what it is to be, and in the end, with None."""
        while True:
            for key, _ in self._events.select():
                if key.fd == 0:
                    return None
                # One before it may have closed this one, and the number be another's by now.
                current = self._events.get_map().get(key.fd) is key
                if current and (asked := key.data()):
                    self._leave_to_the_parent()
                    return asked

    def _when(self, source: Any, act: Callable[[], dict[str, Any] | None]) -> None:
        self._events.register(source, EVENT_READ, act)

    def _fork(self) -> dict[str, Any] | None:
        asking = self._listener.accept()[0]
        size, streams, _, _ = socket.recv_fds(asking, 8, 3)
        asked = json.loads(asking.recv(int.from_bytes(size), socket.MSG_WAITALL))
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)  # when a worker has ended, Ray kills all of its group
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            asking.close()
        for stream in streams:
            os.close(stream)
        if pid == 0:
            return asked
        fork = os.pidfd_open(pid)
        self._when(asking, lambda: self._kill(asking, fork))
        self._when(fork, lambda: self._ended(asking, fork, pid))
        return None

    def _kill(self, asking: socket.socket, fork: int) -> None:
        """Whoever asked for a fork was killed."""
        signal.pidfd_send_signal(fork, signal.SIGKILL)
        self._events.unregister(asking)

    def _ended(self, asking: socket.socket, fork: int, pid: int) -> None:
        status = os.waitpid(pid, 0)[1]
        self._events.unregister(fork)
        os.close(fork)
        with suppress(KeyError):  # it was killed
            self._events.unregister(asking)
        with asking, suppress(OSError):
            asking.sendall(status.to_bytes(8))

    def _leave_to_the_parent(self) -> None:
        for key in list(self._events.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            elif key.fd != 0:
                os.close(key.fd)
        self._events.close()


def become(asked: dict[str, Any]) -> None:
    """Run a program as a process that was started for it would."""
    import numpy as np

    np.random.seed()
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    tempfile.tempdir = None
    sys.argv = asked["command"]
    sys.path[: sys.path.index(str(ROOT / "tests")) + 1] = [
        str(Path(sys.argv[0]).parent),
        *filter(None, os.environ["PYTHONPATH"].split(os.pathsep)),
    ]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    listener = socket.socket(fileno=int(sys.argv[1]))
    for name in (*IMPORTED, *OWN):
        import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "cmoe"]:
        del sys.modules[name]
    assert "ray" not in sys.modules
    if (asked := ForkServer(listener).serve()) is not None:
        become(asked)
