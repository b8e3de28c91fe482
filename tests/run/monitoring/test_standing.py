"""What a driver knows of its run, and keeps in `status.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.workers import TASKS

from cmoe.common.log_lines import ENCODING, log_line
from cmoe.folder import RunFolder
from cmoe.run.heartbeat import StepTime
from cmoe.run.monitoring import status_file
from cmoe.run.monitoring.standing import Standing, TokenCount
from cmoe.run.monitoring.status_file import KEPT, StatusFile
from cmoe.run.remaining_time import Remaining, Sizes

SIZES = Sizes(steps=[12] * 3, samples=[96] * 3, tests=[21] * 3)


def standing() -> Standing:
    return Standing(TASKS, Remaining(SIZES, {}))


def step(number: int, **more: Any) -> dict[str, Any]:
    """A step of 2 s and 300 tokens."""
    return {
        **{"index": 0, "task": TASKS[0], "phase": "train", "step": number, "steps": 12},
        **{"loss": 1.0, "learning_rate": 0.1, "tokens": 300 * number},
        **{"time": 1000.0 + 2 * number, **more},
    }


def test_tokens_are_counted_once_from_a_training_s_beginning_or_from_its_checkpoint() -> None:
    count = TokenCount()
    assert count.since(step(2)) == (600, 0.0)
    assert count.since(step(3)) == (300, 2.0)
    assert count.since(step(2, time=1010.0)) == (0, 0.0), "the group has started again"
    assert count.since(step(4, time=1014.0)) == (600, 4.0)
    assert TokenCount().since(step(8, **{"from": 6})) == (0, 0.0)
    now = standing()
    for number in (1, 2, 3):
        now.event(step(number))
    now.event(step(1, phase="probe", time=2000.0))
    assert now.tokens == {"train": 900, "probe": 300}


def test_a_worker_s_step_time_is_the_mean_since_it_was_asked_whatever_phase_it_is_in() -> None:
    now = [0.0]
    pace = StepTime(lambda: now[0])

    def reached(at: float, phase: str, number: int) -> None:
        now[0] = at
        pace.reached({"index": 0, "phase": phase, "step": number, "steps": 9})

    assert pace.seconds() is None
    for at, number in ((10.0, 0), (10.5, 0), (12.0, 1), (12.1, 1), (13.0, 2)):
        reached(at, "train", number)
    assert pace.seconds() == 1.5
    assert pace.seconds() is None, "no step since"
    reached(20.0, "predict", 0)
    reached(24.0, "predict", 2)
    pace.reached({"phase": "committing"})
    assert pace.seconds() == 2.0


def test_the_file_knows_jobs_and_restarts_of_the_whole_run_and_keeps_the_latest(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path, str(tmp_path))
    for job in (1, 2):
        now = standing()
        file = StatusFile(folder, now, print)
        for number in range(15):
            now.lost(f"loss {job}/{number}")
            now.event({"phase": "restart", "time": 1.0, "count": number, "workers": 2})
        file.write("running")
    found = folder.read_status()
    assert (found["jobs"], found["restarted"], len(found["restarts"])) == (2, 30, KEPT)
    assert found["restarts"][0]["why"] == "loss 1/10"
    assert found["restarts"][-1]["why"] == "loss 2/14"


def test_it_is_written_every_few_seconds_and_a_disk_that_fails_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, said = [100.0], list[str]()
    monkeypatch.setattr(status_file.time, "monotonic", lambda: now[0])
    folder = RunFolder(tmp_path, str(tmp_path))
    file = StatusFile(folder, standing(), said.append)
    written = []
    for _ in range(100):
        file.tick()
        written.append(folder.status.stat().st_mtime_ns)
        now[0] += 1
    assert len(set(written)) == 100 / status_file.PERIOD_S
    folder.status.unlink()
    tmp_path.rmdir()
    file.write("running")
    file.write("failed", "failed: no disk")
    (text,) = said
    assert "can't be written" in text


def test_lines_are_for_people_unless_ray_s_logs_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    assert log_line("\nfinished", run="x") == "\nfinished"
    monkeypatch.setenv(ENCODING, "JSON")
    found = json.loads(log_line("\nfinished\n  näher", "ERROR", run="x"))
    assert found["message"] == "finished\n  näher"
    assert (found["levelname"], found["run"]) == ("ERROR", "x")
