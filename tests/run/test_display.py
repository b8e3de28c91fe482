"""What a run shows and keeps in `run.log`, on simulated events."""

from __future__ import annotations

import os
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from support.workers import TASKS, small_config

from cmoe.folder import LOG, RunFolder
from cmoe.run.display import Display, refused
from cmoe.run.heartbeat import BEAT_S
from cmoe.run.monitor import Follower
from cmoe.run.monitoring.metrics import RunMetrics
from cmoe.run.remaining_time import Remaining, Sizes
from cmoe.run.stalls import duration

SIZES = Sizes(steps=[12] * 3, samples=[96] * 3, tests=[21] * 3)


def display(folder: Path, notes: Any = None) -> tuple[Display, StringIO]:
    out = StringIO()
    config = small_config(folder, "shown")
    return Display(config, RunFolder(folder, str(folder)), Remaining(SIZES, notes or {}), out), out


def logged(folder: Path) -> list[str]:
    lines = (folder / LOG).read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    return [line[20:] for line in lines]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, r"finished after \d+ s"),
        (KeyboardInterrupt(), "interrupted; the same command goes on"),
        (SystemExit(0), "interrupted; the same command goes on"),
        (SystemExit("SIGTERM"), r"interrupted \(SIGTERM\); the same command goes on"),
        (ValueError("out of memory"), "failed: out of memory"),
    ],
)
def test_every_end_stands_in_the_log(
    tmp_path: Path, error: BaseException | None, said: str
) -> None:
    shown, _ = display(tmp_path)
    shown.__exit__(type(error), error, None)
    assert re.fullmatch(said, logged(tmp_path)[-1])


def test_where_the_start_took_its_time_is_told_once(tmp_path: Path) -> None:
    """Ray's part is what isn't the workers' own, and unknown where they start again."""
    shown, _ = display(tmp_path)
    step = {"index": -1, "phase": "predict", "step": 1, "steps": 2, "time": 0.0}
    shown._start -= 30
    shown.event(step | {"startup": {"imports": 8.0, "loading the base": 2.5}})
    shown.event(step)
    shown.event({"phase": "restart", "count": 1, "workers": 1, "time": 0.0})
    shown.event(step | {"startup": {"imports": 7.0}})
    told = [line for line in logged(tmp_path) if "have started" in line]
    assert re.fullmatch(
        r"the workers have started: Ray 19\.[56] s, imports 8\.0 s, loading the base 2\.5 s",
        told[0],
    )
    assert told[1:] == ["the workers have started: imports 7.0 s"]


def test_a_refusal_is_kept_where_there_is_a_log(tmp_path: Path) -> None:
    refused(RunFolder(tmp_path, str(tmp_path)), ValueError("configured otherwise"))
    assert not [*tmp_path.iterdir()]
    display(tmp_path)[0].line("begun")
    refused(RunFolder(tmp_path, str(tmp_path)), ValueError("configured otherwise"))
    assert logged(tmp_path) == ["begun", "refused: configured otherwise"]


def test_a_resumed_run_never_says_that_nothing_is_left(tmp_path: Path) -> None:
    """The last task of three, whose start lies an hour before this session."""
    notes = {i: {"train": 60.0, "predict": 30.0} for i in (-1, 0, 1)}
    shown, out = display(tmp_path, notes)
    place = {"index": 2, "task": TASKS[2], "phase": "train", "from": 3, "steps": 12}
    for step in range(4, 13):
        shown.event({**place, "step": step, "loss": 1.0, "tokens": 9, "time": 7200.0 + 5 * step})
    lines = out.getvalue().splitlines()
    assert len(lines) > 3
    for line in lines:
        left = re.search(r"\(run: about (\d+) (s|min) left\)", line)
        assert left, line
        seconds = int(left[1]) * (60 if left[2] == "min" else 1)
        assert 30 <= seconds <= 100, line
    assert "12/12  loss 1.000  5.00 s a step  (run: about 36 s left)" in lines[-1]


def test_what_is_still_to_come_is_never_no_time() -> None:
    assert [duration(s) for s in (0.0, 0.4, 89, 600, 7200)] == [
        "1 s",
        "1 s",
        "89 s",
        "10 min",
        "2.0 h",
    ]


class Told:
    """A board with some events and beats, as `ray.get` gives them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.workers: dict[int, Any] = {}
        self.asked = 0  # for all workers' beats
        calls = (self._take, self._quiet, self._beats)
        self.take, self.quiet, self.beats = (type("Call", (), {"remote": f}) for f in calls)

    def _take(self) -> list[dict[str, Any]]:
        events, self.events = self.events, []
        return events

    def _quiet(self) -> float:
        return self.seconds

    def _beats(self) -> dict[int, Any]:
        self.asked += 1
        return self.workers


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> tuple[Told, list[float]]:
    """The board, and the driver's clock."""
    now = [100.0]
    monkeypatch.setattr("ray.get", lambda value, timeout: value)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return Told(), now


def test_a_stall_and_what_it_comes_to_are_shown(
    tmp_path: Path, told: tuple[Told, list[float]]
) -> None:
    board, now = told
    shown, _ = display(tmp_path)
    follower = Follower(board, shown, RunMetrics("shown", shown.standing), 2, {"CPU": 1})
    board.events = [{"phase": "scheduling", "workers": 2}, {"phase": "running"}]
    follower.look()
    place = {"index": 1, "phase": "train", "step": 35, "steps": 60}
    one = {"host": "node-a", "place": place, "at": "gather (group.py:60)", "silent": 1.0}
    beats = {0: one | {"pid": 10, "waits": True}, 1: one | {"pid": 11, "waits": False}}
    for second in range(0, 601):
        now[0] += 1
        silent = {1: beats[1] | {"silent": float(second)}}
        board.seconds, board.workers = float(second), beats | silent
        follower.look()
    lines = logged(tmp_path)
    assert [re.match(r"no progress for (\d+) s", line)[1] for line in lines] == [
        "60",
        "120",
        "240",
        "480",
    ]
    assert all("worker 1 (node-a, pid 11) has not answered for" in line for line in lines)
    causes = [(1, "died"), (0, "failed: peer")]
    board.events = [{"phase": "failed", "causes": causes, "beats": beats}]
    follower.look()
    died, before = logged(tmp_path)[-2:]
    assert died == "worker 1 (node-a, pid 11) died; worker 0 (node-a, pid 10) failed: peer"
    assert before.startswith("before that: no progress for 600 s")


def test_a_board_that_does_not_answer_is_told_and_no_event_is_lost(
    tmp_path: Path, told: tuple[Told, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Ray hasn't noticed that a raylet is gone."""
    from ray.exceptions import GetTimeoutError

    board, now = told
    shown, _ = display(tmp_path)
    follower = Follower(board, shown, RunMetrics("shown", shown.standing), 2, {"CPU": 1})

    def waits(_: object, timeout: float) -> None:
        now[0] += timeout
        raise GetTimeoutError

    board.events, board.seconds = [{"phase": "running"}], 0.0
    follower.look()
    board.events = [{"phase": "resizing", "workers": 3}]
    with monkeypatch.context() as lost:
        lost.setattr("ray.get", waits)
        for _ in range(30):
            follower.look()
    lines = logged(tmp_path)
    assert [re.search(r"not answered for (\d+) s", line)[1] for line in lines] == ["60", "120"]
    assert all(f"`kill -KILL {os.getpid()}` ends this job" in line for line in lines)
    follower.look()
    assert logged(tmp_path)[-1] == "the group changes to 3 workers"


def test_a_group_that_steps_says_nothing(tmp_path: Path, told: tuple[Told, list[float]]) -> None:
    board, now = told
    shown, _ = display(tmp_path)
    follower = Follower(board, shown, RunMetrics("shown", shown.standing), 2, {"CPU": 1})
    board.events = [{"phase": "running"}]
    for second in range(1000):
        now[0] += 1
        board.seconds = second % 59
        follower.look()
    assert board.asked <= 1000 / BEAT_S, "nor is it asked more often than workers tell"
    assert (tmp_path / LOG).read_text() == ""
