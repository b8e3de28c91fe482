"""What a run loses that isn't a worker: Ray itself, half of a file, its clock, room for files.

One run loses all of it, one job after the other, and has to end as one that nothing happened to.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.clocks import Clock
from support.jobs import JOB, KILLING, finish, same_run, start, undisturbed, until, write_config
from support.workers import TASKS, FolderLink, run_group, small_config

from cmoe.common.group import Group
from cmoe.config.tree import RunConfig
from cmoe.reports.run_page import write_run_page
from cmoe.run.cluster import LEAST_FILES
from cmoe.run.stream import run_stream

GOES_ON = "the same command goes on with what was saved"
SOON = {"RAY_gcs_rpc_server_reconnect_timeout_s": "8"}  # instead of a minute


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("losses")


def changes(root: Path) -> dict[str, Any]:
    small = small_config(root, "whole")
    return {
        "data": replace(small.data, tasks=TASKS[:2]),
        "training": replace(small.training, steps=50, log_every=2),
        "cluster": replace(small.cluster, workers=1),
    }


@pytest.fixture(scope="module")
def reference(root: Path) -> Path:
    return undisturbed(small_config(root, "whole", **changes(root)), workers=1)


class Jobs:
    """The jobs of one run, each from where the last one was lost."""

    def __init__(self, root: Path, name: str) -> None:
        self.folder, self.config = root / "runs" / name, write_config(root, name, **changes(root))
        self.log = self.folder / "run.log"
        self.said: list[str] = []

    def begin(self, *program: object, **environment: str) -> None:
        self._before = len(self.text())
        self.job = start(*(program or [JOB]), "--config", self.config, environment=environment)

    def text(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def until(self, pattern: str) -> None:
        """Wait until this job has logged so much, or has ended."""
        until(lambda: self.job.poll() is not None or re.search(pattern, self.logged()))

    def logged(self) -> str:
        """What this job has logged."""
        return self.text()[self._before :]

    def kill(self, name: str) -> None:
        """SIGKILL one of Ray's own processes."""
        for child in psutil.Process(self.job.pid).children(recursive=True):
            if child.name() == name:
                child.kill()

    def end(self) -> str:
        """What the job said, which has to be no traceback."""
        self.said.append(finish(self.job))
        assert "Traceback" not in self.said[-1], self.said[-1]
        return self.said[-1]


@pytest.fixture(scope="module")
def jobs(root: Path) -> Jobs:
    """A run that has lost workers, its driver, the head's server, and halves of its files.

    The clock of the driver and of Ray is set two hours ahead, and then behind; the worker, as on
    another machine, has the right one.
    """
    jobs, clock = Jobs(root, "lost"), Clock(root)
    jobs.begin(KILLING, "worker-committed,worker-matrix", **clock.environment)
    jobs.until(r"base +predict")
    clock.set(2)
    jobs.until("start 3 of the workers")
    clock.set(-2)
    jobs.until(r"task 1/2 ScienceQA: ")
    jobs.job.kill()
    jobs.end()
    jobs.begin(KILLING, "none", **SOON)
    jobs.until(r"task 1/2 ScienceQA: ")
    jobs.kill("gcs_server")
    jobs.end()
    for moment in ("driver-report", "driver-page"):
        jobs.begin(KILLING, moment)
        jobs.end()
        assert jobs.job.returncode == -signal.SIGKILL, jobs.said[-1]
    jobs.begin()
    jobs.end()
    assert jobs.job.returncode == 0, jobs.said[-1]
    return jobs


def test_a_lost_head_is_told_before_ray_ends_the_job(jobs: Jobs) -> None:
    told = "Ray's head has not answered for 1 s. If it doesn't come back, Ray ends this job after"
    for text in (jobs.said[1], jobs.text()):
        assert told in text
        assert GOES_ON in text[text.index(told) :]


def test_a_clock_that_is_set_two_hours_back_hides_no_progress(jobs: Jobs) -> None:
    """What is left is estimated from times, and a line is due after some."""
    hours = re.findall(r"^\d+-\d+-\d+ (\d+):.* task ", jobs.text(), re.M)
    assert len(set(hours)) > 1, "the clock was not wrong"
    assert " s left" in jobs.said[0]
    assert " h left" not in jobs.said[0], jobs.said[0]


def test_a_worker_that_is_killed_behind_a_commit_learns_nothing_twice(jobs: Jobs) -> None:
    behind = jobs.said[0][jobs.said[0].index("start 3 of the workers") :]
    assert "task 1/2 ScienceQA  train" not in behind
    for moment in ("worker-committed", "worker-matrix", "driver-report", "driver-page"):
        assert (jobs.folder / f"killed-{moment}").exists()


def test_all_of_it_ends_as_one_that_nothing_happened_to(jobs: Jobs, reference: Path) -> None:
    same_run(jobs.folder, reference)
    page = (jobs.folder / "report.html").read_bytes()
    json.loads((jobs.folder / "report.json").read_bytes())
    (jobs.folder / "report.html").unlink()
    write_run_page(jobs.folder)
    assert (jobs.folder / "report.html").read_bytes() == page, "it was whole"


class Cleaned(FolderLink):
    """Somebody cleans the folder for temporary files away behind every checkpoint."""

    def save(self, folder: Path, *, wait: bool) -> None:
        super().save(folder, wait=wait)
        shutil.rmtree(tempfile.gettempdir())


def cleaned(group: Group, config: RunConfig) -> None:
    tempfile.tempdir = str(config.folder / "temporary")
    Path(tempfile.tempdir).mkdir()
    run_stream(config, group, Cleaned(group, config.folder / "checkpoint"))


def test_a_folder_for_temporary_files_that_is_cleaned_away_is_made_again(
    root: Path, reference: Path
) -> None:
    config = small_config(root, "cleaned", **changes(root))
    config.folder.mkdir()
    run_group(1, cleaned, config)
    same_run(config.folder, reference)


def test_too_few_open_files_are_refused_before_ray_starts() -> None:
    """Its raylet would die of it, in the middle of the run, with a stack of addresses."""
    few = LEAST_FILES - 1
    program = f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({few}, {few}))\n"
    program += "from cmoe.run.cluster import connect\nconnect()"
    out = finish(start("-c", program))
    assert f"may open {few} files each, and Ray needs {LEAST_FILES} at least" in out
    assert "`ulimit -Hn`" in out
