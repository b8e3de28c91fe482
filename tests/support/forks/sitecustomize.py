"""A worker that Ray starts with this folder on its path becomes a fork; see `support.forking`.

Python imports this file before it runs a program. What Ray starts is only a stand-in then: it hands
its command and its streams over, waits until the fork ends, and ends as that did. If it is killed,
the fork is killed.
"""

import json
import os
import signal
import socket
import sys


def worker_command() -> list[str] | None:
    """What a worker of Ray's runs; None in another process."""
    command = sys.orig_argv[1:]
    worker = "/ray/_private/workers/default_worker.py"
    return command if command and command[0].endswith(worker) else None


def stand_in(path: str, command: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as forking:
        forking.connect(path)
        asked = {"command": command, "environment": dict(os.environ), "folder": os.getcwd()}
        message = json.dumps(asked).encode()
        socket.send_fds(forking, [len(message).to_bytes(8)], [0, 1, 2])
        forking.sendall(message)
        status = int.from_bytes(forking.recv(8) or (1 << 8).to_bytes(8))
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
        signal.pause()
    os._exit(os.waitstatus_to_exitcode(status))


path, command = os.environ.get("CMOE_TEST_FORKING"), worker_command()
# A worker of another environment has other packages.
if path and command and sys.prefix == os.environ["CMOE_TEST_PREFIX"]:
    stand_in(path, command)
