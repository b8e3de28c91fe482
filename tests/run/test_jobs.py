"""Jobs submitted to a real head that lets in nobody without its token."""

from __future__ import annotations

import re
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.heads import Head, running_head
from support.jobs import same_run, undisturbed, until, write_config
from support.workers import TASKS, small_config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def head(root: Path) -> Iterator[Head]:
    token = root / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    with running_head(token, root / "head.log") as head:
        yield head


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
        "training": replace(small.training, steps=30),
        "data": replace(small.data, tasks=TASKS[:2]),
        "cluster": replace(small.cluster, workers=1),
    }
    reference = undisturbed(small_config(root, "whole", **changes), workers=1)
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


def test_data_that_was_not_uploaded_is_said_to_be_so(head: Head, root: Path) -> None:
    """`.gitignore` names `data/`, so that no job has it in its copy of the working directory."""
    config = write_config(root, "elsewhere")
    failed = head.submit(config, "--data.generate", "false", "--data.root", "data/coin")
    assert failed.returncode == 1
    assert "data.root is 'data/coin', and isn't in the copy of the working dir" in failed.stdout
    assert "absolute path that every machine has, or s3://bucket/prefix" in failed.stdout
    assert "Traceback" not in failed.stdout
