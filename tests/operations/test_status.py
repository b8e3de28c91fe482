"""Where a run is, from its files: those that its own driver's parts write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
from support.jobs import until
from support.workers import TASKS, small_config

from cmoe.cli.main import main
from cmoe.common.remote.mirror import mirrored
from cmoe.common.run_files import write_json
from cmoe.config.tree import RunConfig
from cmoe.folder import APART, SWEEP, RunFolder
from cmoe.operations.status import status_of
from cmoe.run import lease
from cmoe.run.display import Display
from cmoe.run.holder import Holder
from cmoe.run.lease import held
from cmoe.run.remaining_time import Remaining, Sizes

SIZES = Sizes(steps=[12] * 3, samples=[96] * 3, tests=[21] * 3)
ROWS = [[80.0, None, None], [70.0, 60.0, None]]
METRICS = {"last": 65.0, "bwt": -5.0}


@contextmanager
def driven(config: RunConfig, *, learned: int = 0) -> Iterator[Display]:
    """A run that this process drives, as far as its files go."""
    with held(config.url), mirrored(config.url, apart=APART) as mirror:
        folder = RunFolder(mirror.folder, config.url)
        folder.claim(config.as_dict())
        mirror.flush()
        if learned:
            write_json(folder.matrix, {"located": ROWS[:learned], "metrics": METRICS})
        with Display(config, folder, Remaining(SIZES, {}), out=StringIO()) as display:
            yield display
            mirror.flush()


def steps(display: Display, index: int = 1) -> None:
    """Seven of twelve training steps of a task, 2 s and 300 tokens each."""
    place = {"index": index, "task": TASKS[index], "phase": "train", "steps": 12}
    for step in range(1, 8):
        more = {"step": step, "loss": 1 / step, "learning_rate": 0.1, "tokens": 300 * step}
        display.event({**place, **more, "time": 1000.0 + 2 * step})
    display.standing.look(3.0, {0: {"host": "node-a", "pid": 7, "silent": 1.0, "step_s": 2.0}})


def asked(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Status, output and errors of `cmoe status`."""
    code = main(["status", *map(str, words)])
    return code, *capsys.readouterr()


def test_a_run_that_goes_on_says_where_it_is_and_how_fast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path, "seen")
    with driven(config, learned=1) as display:
        steps(display)
        display.lost("worker 1 (node-b, pid 9) died")
        display.event({"phase": "restart", "count": 1, "workers": 2, "time": 1020.0})
        steps(display)
        display.standing.look(75.0, display.standing.workers)
        display._status.write("running")
        found = status_of(config.url)
        code, text, _ = asked(capsys, config.url)
    assert (found.state, found.learned, found.tasks) == ("running", 1, list(TASKS))
    assert found.place == {
        **{"index": 1, "task": TASKS[1], "phase": "train", "step": 7, "steps": 12}
    }
    assert found.figures["tokens_per_s"] == 150
    assert found.figures["step_s"] == 2
    assert found.remaining_s["phase"] == 10
    assert [restart["why"] for restart in found.restarts] == ["worker 1 (node-b, pid 9) died"]
    assert found.holder is not None
    assert found.holder.pid == os.getpid()
    assert found.scores == {TASKS[0]: 80.0}
    assert found.sizes is not None
    assert found.sizes["lease"] > 0
    assert code == 0
    for said in (
        f"running, 1 of 3 tasks learned, task 2/3 {TASKS[1]}, train, step 7 of 12",
        "150 tokens/s, 2.00 s a step, loss 0.143",
        "about 10 s of the phase",
        "stalled   no progress for 75 s",
        "1 of the workers; job 1 of this run",
        "worker 1 (node-b, pid 9) died",
        f"{TASKS[0]} 80.0; Last 65.0; BWT -5.0",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (KeyboardInterrupt(), "interrupted", "interrupted; the same command goes on"),
        (ValueError("out of memory"), "failed", "failed: out of memory"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_run_that_ended_early_says_why(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    state: str,
    why: str,
    old: bool,
) -> None:
    """Also one of a version that wrote no `status.json`, by its log."""
    config = small_config(tmp_path, "seen")
    with pytest.raises(type(error)), driven(config):
        raise error
    folder = RunFolder(config.folder, config.url)
    if old:
        folder.status.unlink()
    code, text, _ = asked(capsys, config.url, "--json")
    found = json.loads(text)
    assert (code, found["state"], found["why"]) == (3, state, why)
    assert found["lines"][-1].endswith(why)


def test_a_driver_that_was_killed_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path, "seen")
    with driven(config) as display:
        steps(display)
    kill = "import os, sys; from cmoe.run.lease import held\n"
    kill += f"with held({config.url!r}): os.kill(os.getpid(), {signal.SIGKILL})"
    subprocess.run([sys.executable, "-c", kill], check=False)
    folder = RunFolder(config.folder, config.url)
    write_json(folder.status, folder.read_status() | {"state": "running"})
    code, text, _ = asked(capsys, config.url)
    assert code == 3
    assert "lost, 0 of 3 tasks learned" in text
    assert "its driver has gone: process" in text


@pytest.mark.parametrize("lives", [False, True])
def test_a_clock_that_is_wrong_makes_no_driver_look_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    """On another machine, whose clock is an hour late: it is looked at again."""
    monkeypatch.setattr(lease, "BEAT_S", 0.5)
    monkeypatch.setattr(lease, "LATE_S", 0.5)
    config = small_config(tmp_path, "seen")
    with driven(config):
        pass
    (tmp_path / "runs/seen/status.json").unlink()
    elsewhere = replace(Holder.here(), machine="another", renewed="2026-01-01 00:00:00 UTC")
    file = tmp_path / "runs/seen/lease/0009.json"
    write_json(file, asdict(elsewhere))
    if lives:
        renewed = replace(elsewhere, beats=1, renewed="2026-01-01 00:00:06 UTC")
        threading.Timer(0.3, write_json, (file, asdict(renewed))).start()
    assert status_of(config.url).state == ("running" if lives else "lost")


def finished(config: RunConfig) -> RunConfig:
    folder = RunFolder(config.folder, config.url)
    folder.claim(config.as_dict())
    write_json(folder.matrix, {"located": [*ROWS, [70.0, 60.0, 50.0]], "metrics": METRICS})
    write_json(folder.report, {})
    return config


def test_a_folder_of_runs_is_a_line_for_each_also_of_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is damaged says so, and hides no other."""
    runs = tmp_path / "runs"
    finished(small_config(tmp_path, "whole"))
    compared = replace(small_config(tmp_path, "lora-0"), runs=str(runs / "compared"))
    code, text, _ = asked(capsys, runs)
    assert code == 0
    with driven(compared) as display:
        steps(display)
        display._status.write("running")
        code, text, _ = asked(capsys, runs)
    assert code == 0
    title, going, whole = text.splitlines()
    assert title.split() == ["run", "state", "tasks", "where", "last", "left"]
    assert going.startswith(f"{runs}/compared/lora-0  running   0/3    task 2/3 {TASKS[1]}, train")
    assert whole.split() == [f"{runs}/whole", "finished", "3/3", "65.0"]
    (runs / "whole" / "matrix.json").write_text("{")
    code, text, _ = asked(capsys, runs, "--json")
    states = {run["url"]: run["state"] for run in json.loads(text)["runs"]}
    assert code == 3
    assert states[f"{runs}/whole"] == "unreadable"
    code, _, said = asked(capsys, runs / "whole")
    assert code == 1
    assert "matrix.json: damaged" in said


def test_a_sweep_is_finished_when_all_tasks_are_swept(tmp_path: Path) -> None:
    config = small_config(tmp_path, "swept")
    folder = RunFolder(config.folder, config.url)
    folder.claim(config.as_dict())
    for count, state in ((2, "stopped"), (3, "finished")):
        write_json(folder.path / SWEEP, {"tasks": [{}] * count})
        found = status_of(config.url)
        assert (found.state, found.learned) == (state, count)


def test_where_no_run_is_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        code, _, said = asked(capsys, place)
        assert code == 1
        assert f"{place}: no run is here" in said
    with held(str(tmp_path / "begun")):
        code, _, said = asked(capsys, tmp_path / "begun")
        assert code == 1
        assert f"begun: a job prepares it: process {os.getpid()} of" in said


def test_a_run_on_s3_is_seen_while_it_goes_on(
    tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(small_config(tmp_path, "away"), runs=f"{bucket}/runs")
    with driven(config, learned=2) as display:
        steps(display, index=2)
        display._status.write("running")
        until(lambda: status_of(config.url).place, minutes=1)
        kept = status_of(config.url)
        assert asked(capsys, f"{bucket}/runs")[:1] == (0,)
    assert kept.state == "running"
    assert kept.place["task"] == TASKS[2]
    assert kept.scores == {TASKS[0]: 70.0, TASKS[1]: 60.0}
    assert kept.sizes["others"] > 500
    assert status_of(config.url).state == "stopped"
