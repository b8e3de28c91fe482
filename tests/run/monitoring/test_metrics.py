"""A run as machines see it: its figures as Prometheus gets them, from the agents that Ray's
discovery file names, and its log lines in JSON.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.heads import Head, running_head
from support.jobs import JOB, finish, matrix_of, start, write_config
from support.workers import TASKS, small_config

from cmoe.common.log_lines import ENCODING
from cmoe.common.metrics import TRAINING
from cmoe.folder import RunFolder

DISCOVERY = "prom_metrics_service_discovery.json"
Labels = frozenset[tuple[str, str]]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with a short name: Ray's sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="cmoe-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def head(place: Path) -> Iterator[Head]:
    token = place / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    more = {"RAY_TMPDIR": str(place), "RAY_metrics_report_interval_ms": "1000"}
    with running_head(token, place / "head.log", more) as head:
        yield head


class Scraped:
    """What Prometheus would have got, by the name of a sample: each value that it had."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.values: dict[str, dict[Labels, list[float]]] = {}
        self.kinds: dict[str, str] = {}

    def scrape(self) -> None:
        """All targets of the discovery file, as Prometheus reads it: no token is asked for."""
        if not self._file.is_file():
            return
        for target in (t for group in json.loads(self._file.read_text()) for t in group["targets"]):
            try:
                with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as response:
                    page = response.read().decode()
            except OSError:
                continue  # the autoscaler's, where there is none
            for family in text_string_to_metric_families(page):
                self.kinds[family.name] = family.type
                for sample in family.samples:
                    self._add(sample.name, sample.labels, sample.value)

    def _add(self, name: str, labels: Mapping[str, str], value: float) -> None:
        if name.startswith("ray_cmoe_"):
            series = self.values.setdefault(name, {})
            series.setdefault(frozenset(labels.items()), []).append(value)

    def of(self, name: str, **labels: str) -> list[float]:
        """All values of the series with these labels, of which there is one at most."""
        series = self.values.get(name, {})
        found = [values for own, values in series.items() if labels.items() <= dict(own).items()]
        assert len(found) < 2, (name, labels)
        return found[0] if found else []


@pytest.fixture(scope="module")
def followed(head: Head, place: Path) -> tuple[Scraped, Path, str]:
    """A run of two tasks on the head, scraped from its beginning to its end; what it said."""
    scraped = Scraped(place / "ray" / DISCOVERY)
    environment = head.environment | {"RAY_ADDRESS": head.address, ENCODING: "JSON"}
    data = replace(small_config(place, "seen").data, tasks=TASKS[:2])
    config = write_config(place, "seen", data=data)
    job = start(JOB, "--config", config, environment=environment)
    while job.poll() is None:
        scraped.scrape()
        time.sleep(0.5)
    out = finish(job)
    assert job.returncode == 0, out
    return scraped, place / "runs" / "seen", out


def noted(folder: Path, task: int) -> dict[str, Any]:
    return RunFolder(folder, str(folder)).read_notes(task)


def test_prometheus_gets_every_figure_of_a_run(followed: tuple[Scraped, Path, str]) -> None:
    scraped, folder, _ = followed
    matrix: dict[str, Any] = matrix_of(folder)
    named = {name for metric in TRAINING for name in metric.exported}
    assert named - scraped.values.keys() == set()
    first = matrix["located"][0][0] / 100
    assert scraped.of("ray_cmoe_train_accuracy_ratio", run="seen", task=TASKS[0])[0] == first
    assert scraped.of("ray_cmoe_train_last_ratio", run="seen")[0] == pytest.approx(first)
    assert scraped.of("ray_cmoe_train_tasks", run="seen")[-1] == 2
    assert scraped.of("ray_cmoe_train_task", run="seen")[-1] == 2
    assert set(scraped.of("ray_cmoe_train_restarts", run="seen")) == {0}
    losses = [loss for values in noted(folder, 0)["loss"].values() for loss in values]
    assert min(losses) <= scraped.of("ray_cmoe_train_loss", run="seen")[0] <= max(losses)


def test_workers_are_told_apart(followed: tuple[Scraped, Path, str]) -> None:
    scraped, *_ = followed
    for rank in ("0", "1"):
        steps = scraped.of("ray_cmoe_train_step_seconds", worker=rank)
        assert steps
        assert all(0 < seconds < 60 for seconds in steps)
    assert max(scraped.of("ray_cmoe_train_workers", run="seen")) == 2


def test_one_phase_is_at_work_at_a_time(followed: tuple[Scraped, Path, str]) -> None:
    """The series of a phase stays when the phase ends, with 0."""
    scraped, *_ = followed
    series = scraped.values["ray_cmoe_train_phase_info"]
    assert {dict(labels)["phase"] for labels in series} >= {"train", "predict"}
    assert sum(values[-1] for values in series.values()) <= 1
    assert scraped.of("ray_cmoe_train_phase_info", task=TASKS[0], phase="train")[-1] == 0


def test_tokens_are_counted(followed: tuple[Scraped, Path, str]) -> None:
    scraped, folder, _ = followed
    notes = [noted(folder, number) for number in range(2)]
    counted = scraped.of("ray_cmoe_train_tokens_total", phase="train")
    assert scraped.kinds["ray_cmoe_train_tokens"] == "counter"
    assert counted == sorted(counted)
    assert notes[0]["tokens"]["train"] in counted
    assert counted[-1] <= sum(note["tokens"]["train"] for note in notes)


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_what_the_driver_says_is_json_and_its_log_is_for_people(
    followed: tuple[Scraped, Path, str],
) -> None:
    _, folder, out = followed
    assert [line for line in out.splitlines() if "task " in line and line[0] != "{"] == []
    said = [line for line in objects(out) if line.get("worker") == "driver"]
    (trained,) = [line for line in said if line["message"].startswith("task 2/2 VizWiz  train 12/")]
    assert (
        trained.items()
        >= {**{"run": "seen", "task": "VizWiz", "phase": "train", "levelname": "INFO"}}.items()
    )
    assert trained["node"]
    assert abs(trained["timestamp_ns"] / 1e9 - time.time()) < 3600
    log = (folder / "run.log").read_text().splitlines()
    assert [line[20:] for line in log] == [line["message"] for line in said]


def test_workers_lines_say_where_they_come_from(
    followed: tuple[Scraped, Path, str], place: Path
) -> None:
    """Each worker's own, in Ray Train's file of it and in its stderr: a line for each phase."""
    phases = {
        (task, phase)
        for number, task in enumerate(TASKS[:2])
        for phase in (*noted(followed[1], number)["loss"], "predict")
    }
    assert len(phases) > 4
    logs = place / "ray" / "session_latest" / "logs"
    for pattern, rank in product(("train/ray-train-app-worker-*.log", "worker-*.err"), (0, 1)):
        texts = [log.read_text(errors="replace") for log in logs.glob(pattern)]
        said = [line for text in texts for line in objects(text)]
        mine = [line for line in said if line.get("worker") == rank and line["run"] == "seen"]
        assert {(line["task"], line["phase"]) for line in mine if "task" in line} >= phases
        assert all(line["node"] and line["timestamp_ns"] for line in mine)
