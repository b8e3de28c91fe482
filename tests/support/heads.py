"""A Ray head with a job server that asks for a token, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from support.jobs import MINUTES, REPOSITORY, until
from support.marks import starts
from support.ports import free_port

RAY = Path(sys.executable).with_name("ray")
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@dataclass(frozen=True)
class Head:
    """A head and its job server, and the environment of those who may use them."""

    address: str
    url: str
    environment: dict[str, str]
    token: str

    def asked(self, path: str) -> dict[str, object]:
        """What the job server answers to one who has the token."""
        request = urllib.request.Request(f"{self.url}{path}")
        request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=MINUTES) as response:
            found: dict[str, object] = json.load(response)
            return found

    def up(self) -> bool:
        try:
            return bool(self.asked("/api/version"))
        except OSError:
            return False

    def command(self, *words: object, token: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray job ...` as a user types it."""
        environment = self.environment if token else strangers()
        return subprocess.run(
            [RAY, "job", words[0], "--address", self.url, *map(str, words[1:])],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=5 * MINUTES,
        )

    def submit(self, config: Path, *more: object) -> subprocess.CompletedProcess[str]:
        before = [word for word in more if str(word).startswith("--submission")]
        before += [word for word in more if word == "--no-wait"]
        flags = [word for word in more if word not in before]
        job = ["python", "ray_jobs/coin_stream.py", "--config", config, *flags]
        return self.command("submit", "--working-dir", ".", *before, "--", *job)


def strangers() -> dict[str, str]:
    """The environment of one without a token, but with the mode: it is the token that counts."""
    kept = {name: value for name, value in os.environ.items() if name not in AUTH}
    return {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 32, "HOME": "/nonexistent"}


@starts("ray")
@contextmanager
def running_head(
    token: Path, log: Path, more: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Head]:
    """A head of two CPUs.

    Args:
        token: The file of its token.
        log: Where it writes.
        more: Of its environment.
        cwd: Where it starts; this folder, where there is none.
    """
    kept = {name: value for name, value in os.environ.items() if name not in AUTH}
    environment = kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        **(more or {}),
    }
    port, dashboard = free_port(), free_port()
    command = [RAY, "start", "--head", "--block", "--num-cpus", "2", "--port", str(port)]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    command += ["--dashboard-agent-listen-port", str(free_port())]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=cwd)
        try:
            url = f"http://127.0.0.1:{dashboard}"
            found = Head(f"127.0.0.1:{port}", url, environment, token.read_text().strip())
            until(found.up, minutes=2)
            yield found
        finally:
            # Not SIGTERM: Ray then waits half a minute for processes that have nothing to end.
            for one in (*psutil.Process(process.pid).children(recursive=True), process):
                one.kill()
            process.wait(timeout=MINUTES)
