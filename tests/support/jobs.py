"""Jobs as their users start them, in processes of their own, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from support.marks import starts
from support.paths import ROOT as REPOSITORY
from support.workers import FolderLink, run_group, small_config

from cmoe.common.group import Group
from cmoe.common.remote.mirror import mirrored
from cmoe.config.tree import RunConfig
from cmoe.evaluation.results import MEASURED
from cmoe.mini.tasks import ensure_data
from cmoe.run.stream import run_stream
from cmoe.store.log import Store

JOB = REPOSITORY / "ray_jobs" / "coin_stream.py"
KILLING = REPOSITORY / "tests" / "support" / "killing.py"
MINUTES = 60


def write_config(root: Path, name: str, **changes: Any) -> Path:
    """A small run's YAML, for two workers that are a micro-batch of eight each."""
    config = small_config(root, name, **changes).as_dict()
    file = root / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@starts("ray")
def start(
    *command: object, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """A program of Python's under way, its output in one pipe."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        **options,
    )


def finish(process: subprocess.Popen[str], minutes: float = 5) -> str:
    """Its output, when it has ended."""
    out, _ = process.communicate(timeout=minutes * MINUTES)
    return out


def until(what: Callable[[], object], minutes: float = 3) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + minutes * MINUTES
    while not what():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.1)


def matrix_of(folder: Path) -> dict[str, Any]:
    """The results of a run, but for the times."""
    matrix: dict[str, Any] = json.loads((folder / "matrix.json").read_text())
    for name in MEASURED:
        matrix.pop(name)
    return matrix


def same_run(url: str | Path, reference: Path) -> None:
    """A run has come to the results and the weights of another, and its store is whole."""
    with mirrored(str(url), apart=["store", "train"]) as mirror:
        mirror.fetch("matrix.json")
        assert matrix_of(mirror.folder) == matrix_of(reference)
    mine, theirs = Store.open(f"{url}/store"), Store.open(reference / "store")
    mine.verify()
    assert mine.tasks == theirs.tasks
    for one, other in zip(mine.records(), theirs.records(), strict=True):
        assert one.files == other.files, one.task


@starts("group")
def undisturbed(config: RunConfig, workers: int = 2) -> Path:
    """The folder of a run of the worker program on a group that nothing happens to."""
    ensure_data(config.data)
    config.folder.mkdir(parents=True)
    run_group(workers, _stream, config)
    return config.folder


def _stream(group: Group, config: RunConfig) -> None:
    with tempfile.TemporaryDirectory() as beside:
        run_stream(config, group, FolderLink(group, Path(beside) / "checkpoint"))
