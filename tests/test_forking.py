"""A fork that stands for a worker of Ray's lives and ends as a process that was started would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.jobs import until

pytestmark = pytest.mark.ray  # which starts the process that forks
PROGRAM = """
import os, signal, sys, time
forked = "torch" in sys.modules
alone = os.getpgrp() == os.getpid()
print(os.getpid(), forked and alone, sys.argv[1], os.environ["GIVEN"], os.getcwd(), flush=True)
if sys.argv[1] == "ends":
    sys.exit(7)
time.sleep(60)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    file = tmp_path / "ray" / "_private" / "workers" / "default_worker.py"
    file.parent.mkdir(parents=True)
    file.write_text(PROGRAM)
    return file


def started(worker: Path, *words: str) -> tuple[subprocess.Popen[str], list[str]]:
    """A process, and what its fork says: its pid first."""
    process = subprocess.Popen(
        [sys.executable, str(worker), *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=worker.parent,
        env={**os.environ, "GIVEN": "here"},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()


def test_it_has_all_imports_and_what_it_was_given(worker: Path) -> None:
    process, said = started(worker, "ends")
    assert said[1:] == ["True", "ends", "here", str(worker.parent)]
    assert int(said[0]) != process.pid
    assert process.wait(10) == 7


def test_a_killed_fork_is_a_killed_worker(worker: Path) -> None:
    process, said = started(worker, "sleeps")
    os.kill(int(said[0]), signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL


def test_who_kills_the_worker_kills_its_fork(worker: Path) -> None:
    process, said = started(worker, "sleeps")
    process.kill()
    process.wait(10)
    until(lambda: not psutil.pid_exists(int(said[0])))


def test_a_worker_with_a_path_of_its_own_imports_from_there(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray gives it to a job with a working directory, which may bring another cmoe."""
    (worker.parent / "own" / "cmoe").mkdir(parents=True)
    (worker.parent / "own" / "cmoe" / "__init__.py").write_text("WHOSE = 'of its own'")
    worker.write_text("import cmoe; print(cmoe.WHOSE, flush=True)")
    monkeypatch.setenv("PYTHONPATH", f"{worker.parent / 'own'}:{os.environ['PYTHONPATH']}")
    process, said = started(worker)
    assert said == ["of", "its", "own"]
    assert process.wait(10) == 0
