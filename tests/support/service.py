"""A service in a process of its own, as its users start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import yaml
from support.marks import starts
from support.paths import CONFIGS, ROOT
from support.ports import free_port

DEPLOYMENTS = ("gateway", "locator", "executor")
START_S, END_S = 240.0, 60.0
REPLICA = "ray::ServeReplica:cmoe:"


@dataclass(frozen=True)
class RunningService:
    """A service that answers.

    Attributes:
        url: Its URL, without a slash at the end.
    """

    url: str

    def replicas(self) -> dict[str, psutil.Process]:
        """A process of each deployment."""
        return {name: processes[-1] for name, processes in self.processes().items()}

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Processes of its replicas, by deployment."""
        found: dict[str, list[psutil.Process]] = {}
        for title, process in _actors():
            if title.startswith(REPLICA):
                name = re.split(r"[ .]", title.removeprefix(REPLICA))[0]
                found.setdefault(name, []).append(process)
        return found

    def proxy(self) -> psutil.Process:
        """The process that listens."""
        return next(process for title, process in _actors() if title.startswith("ray::ProxyActor"))


def _actors() -> Iterator[tuple[str, psutil.Process]]:
    """Titles and processes of Ray's actors that are of this process's making."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            yield " ".join(process.cmdline()), process


def service_file(
    folder: Path,
    deployments: Sequence[str] = DEPLOYMENTS,
    gateways: int = 1,
    shipped: str = "serve_mini",
    **arguments: Any,
) -> Path:
    """The file of a mini service in a folder, with some deployments and other `args`; with one
    gateway by itself, so that its limits are the service's.
    """
    values = yaml.safe_load((CONFIGS / f"{shipped}.yaml").read_text())
    (application,) = values["applications"]
    application["args"] |= arguments
    application["deployments"] = [d for d in application["deployments"] if d["name"] in deployments]
    application["deployments"][0]["num_replicas"] = gateways
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@starts("ray")
@contextmanager
def running_service(
    store: Path | str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = ("ray_jobs/coin_serve.py",),
) -> Iterator[RunningService]:
    """A service on a free port of this machine, for as long as the body runs.

    Args:
        store: What it answers from.
        arguments: Further ones of the program.
        environment: Variables to set besides those of this process.
        program: What serves, with Python.
    """
    port = free_port()
    command = [sys.executable, *program, "--config", "configs/serve_mini.yaml"]
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
            yield RunningService(f"http://127.0.0.1:{port}")
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
