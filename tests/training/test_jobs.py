"""Jobs submitted to a real head that lets in nobody without its token."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from jobs import MINUTES, REPOSITORY, same_run, undisturbed, until, write_config
from ports import free_port
from workers import TASKS, small_config

RAY = Path(sys.executable).with_name("ray")
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@dataclass(frozen=True)
class Head:
    """A head's job server, and the environment of those who may use it."""

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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def head(root: Path) -> Iterator[Head]:
    token = root / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if name not in AUTH}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    environment = kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": path,
    }
    port, dashboard = free_port(), free_port()
    command = [RAY, "start", "--head", "--block", "--num-cpus", "2", "--port", str(port)]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    command += ["--dashboard-agent-listen-port", str(free_port())]
    with (root / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            found = Head(f"http://127.0.0.1:{dashboard}", environment, token.read_text())
            until(found.up, minutes=2)
            yield found
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=MINUTES)


def test_nobody_comes_in_without_the_token(head: Head, root: Path) -> None:
    config = write_config(root, "stranger")
    job = ["python", "ray_jobs/coin_stream.py", "--config", config]
    refused = head.command("submit", "--working-dir", ".", "--", *job, token=False)
    assert refused.returncode != 0
    assert re.search("401|[Uu]nauth|[Ii]nvalid|authentication", refused.stdout), refused.stdout
    assert not (root / "runs" / "stranger").exists()
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{head.url}{path}")
        assert raised.value.code in (401, 403), path


def test_a_job_runs_to_its_end_also_when_it_was_stopped_between(head: Head, root: Path) -> None:
    small = small_config(root, "whole")
    changes = {
        "training": replace(small.training, steps=40),
        "data": replace(small.data, tasks=TASKS[:2]),
    }
    reference = undisturbed(small_config(root, "whole", **changes))
    config = write_config(root, "submitted", **changes)
    log = root / "runs" / "submitted" / "run.log"
    sent = head.submit(config, "--submission-id=first", "--no-wait")
    assert sent.returncode == 0, sent.stdout
    until(lambda: log.is_file() and "task 2/2 VizWiz  probe" in log.read_text())
    stopped = head.command("stop", "first")
    assert stopped.returncode == 0, stopped.stdout
    until(lambda: head.asked("/api/jobs/first")["status"] not in ("PENDING", "RUNNING"))
    assert head.asked("/api/jobs/first")["status"] == "STOPPED"
    lines = len(log.read_text().splitlines())
    time.sleep(3)
    assert len(log.read_text().splitlines()) == lines, "it goes on though it was stopped"
    ended = head.submit(config)
    assert ended.returncode == 0, ended.stdout
    assert "task 1/2 ScienceQA  train" not in ended.stdout, "what was learned is learned"
    same_run(root / "runs" / "submitted", reference)


def test_the_exit_status_tells_failure(head: Head, root: Path) -> None:
    config = write_config(root, "failing")
    failed = head.submit(config, "--probe.alpha", "much")
    assert failed.returncode == 1
    assert "probe.alpha" in failed.stdout


def test_a_folder_that_goes_with_the_job_is_refused(head: Head, root: Path) -> None:
    failed = head.submit(write_config(root, "lost"), "--runs", "runs")
    assert failed.returncode == 1
    assert "give --runs an absolute path that stays, or s3://" in failed.stdout
