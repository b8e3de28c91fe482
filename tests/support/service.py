"""A service in a process of its own, as its users start it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from support.paths import ROOT
from support.ports import free_port

START_S, END_S = 240.0, 60.0


@contextmanager
def running_service(
    store: Path | str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """The URL of a service on a free port of this machine, without a slash at its end.

    Args:
        store: What it answers from.
        arguments: Further ones of `coin_serve.py`.
        environment: Variables to set besides those of this process.
    """
    port = free_port()
    command = [sys.executable, "ray_jobs/coin_serve.py", "--config", "configs/serve_mini.yaml"]
    command += ["--store", str(store), "--port", str(port), *arguments]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=errors,
        )
        try:
            deadline = time.monotonic() + START_S
            while "answers" not in _written(output):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the service didn't come up:\n{_written(errors)}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _written(file: IO[str]) -> str:
    """What a process has written so far; its place in the file stays where it was."""
    return os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace")
