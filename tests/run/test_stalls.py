"""What is said while nothing happens, on simulated beats and clusters."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from cmoe.run.board import Board
from cmoe.run.heartbeat import Heartbeat, doing
from cmoe.run.monitoring.alike import differing
from cmoe.run.stalls import QUIET_S, Spaced, behind, fitting, stalled, waiting

TASKS = ("ScienceQA", "VizWiz")


def beat(step: int, count: int = 1, **changes: Any) -> dict[str, Any]:
    place = {"index": 1, "phase": "train", "step": step, "steps": 60}
    about = {
        "host": "node-a",
        "pid": 4200,
        "at": "losses (phases.py:150)",
        "waits": False,
    }
    sent = {"count": count, "silent": 0.0, "sent": time.time()}
    return {"place": place, **sent, **about} | changes


def test_what_lasts_is_told_after_a_minute_and_then_less_and_less_often() -> None:
    spaced = Spaced(QUIET_S)
    told = [second for second in range(2000) if spaced.due(second)]
    assert told == [60, 120, 240, 480, 960, 1920]
    assert not spaced.due(0)
    assert spaced.due(61), "after progress it begins anew"


def test_a_worker_that_does_not_answer_is_the_one_behind() -> None:
    beats = {0: beat(35, waits=True), 1: beat(35, silent=63.0, pid=4242), 2: beat(35, waits=True)}
    text = stalled(65, beats, TASKS)
    assert "no progress for 65 s: task 2/2 VizWiz, train, step 35 of 60" in text
    assert "worker 1 (node-a, pid 4242) has not answered for 63 s" in text
    assert text.endswith("workers 0, 2 wait for that")


def test_a_worker_that_is_stuck_while_others_wait_is_the_one_behind() -> None:
    stuck = beat(35, at="_picture (batches.py:80) > read (file.py:1)")
    beats = {0: beat(35, waits=True), 1: beat(35, waits=True), 2: stuck}
    assert behind(beats) == {2}
    assert "worker 2 (node-a, pid 4200) is in _picture (batches.py:80)" in stalled(65, beats, TASKS)


def test_where_the_host_runs_ahead_of_its_device_the_fewest_steps_are_behind() -> None:
    """With NCCL nobody is seen in a collective: the host waits for its device, steps later."""
    assert behind({0: beat(40), 1: beat(40), 2: beat(35), 3: beat(40)}) == {2}


def test_a_long_phase_without_steps_says_what_goes_on_and_no_more() -> None:
    loading = {"place": {"phase": "loading the base"}, "at": "load_base (pretrained.py:88)"}
    text = stalled(61, {rank: beat(0) | loading for rank in range(2)}, TASKS)
    assert text.startswith("no progress for 61 s: loading the base; worker 0")
    assert "answer" not in text
    locator = {"place": {"index": 0, "phase": "locator"}}
    text = stalled(61, {0: beat(0) | locator, 1: beat(0, waits=True) | locator}, TASKS)
    assert "task 1/2 ScienceQA, locator; worker 0" in text
    assert "worker 1 waits for that" in text
    assert "no worker has begun" in stalled(61, {}, TASKS)


def test_events_have_the_boards_time_which_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a worker's: its machine's clock may be off, and be set while it works."""
    board, began = Board(), time.time()
    for off in (0.0, 7200.0, -7200.0):
        monkeypatch.setattr(time, "time", lambda off=off: began + off)
        board.post({"phase": "train", "time": time.time()})
    times = [event["time"] for event in board.take()]
    assert times == sorted(times)
    assert times == pytest.approx([began] * 3, abs=60)


def test_many_workers_are_a_short_line() -> None:
    text = stalled(61, {rank: beat(35) for rank in range(64)}, TASKS)
    assert "60 more alike" in text
    assert len(text) < 400


def test_the_board_knows_progress_of_any_worker_from_none() -> None:
    now = [0.0]
    board = Board(clock=lambda: now[0])
    for now[0] in range(0, 300, 5):
        board.beat(0, beat(1, count=7))
        board.beat(1, beat(1, count=7 + int(now[0] // 100)))  # a step every 100 s
    assert board.quiet() == 295 - 200
    assert {rank: b["silent"] for rank, b in board.beats().items()} == {0: 0, 1: 0}
    now[0] = 400
    assert board.beats()[1]["silent"] == 105
    board.post({"phase": "train"})
    assert board.quiet() == 0
    board.post({"phase": "failed"})
    board.start()
    assert board.beats() == {}, "those before are gone"
    assert board.take()[-1]["beats"].keys() == {0, 1}, "what failed is told with them"


def test_workers_with_other_versions_or_another_time_are_told_once_that_is_sure() -> None:
    now = [1000.0]
    board = Board(wall=lambda: now[0])
    like, other = {"torch": "2.13.0"}, {"torch": "2.12.0"}
    for count, delay in enumerate((8.0, 0.1, 9.0)):  # a beat may be under way for long
        now[0] = 1000.0 + 10 * count + delay
        board.beat(0, beat(count, sent=1000.0 + 10 * count, versions=like))
        board.beat(1, beat(count, sent=1000.0 + 10 * count + 60, versions=like))
        board.beat(2, beat(count, sent=1000.0 + 10 * count, versions=other))
        found = differing(board.beats())
        assert ((1, "clock") in found) == (count == 2)
    assert {*found} == {(1, "clock"), (2, "torch")}
    assert "its clock is 60 s ahead of the driver's" in found[1, "clock"]
    assert "worker 2 (node-a, pid 4200): torch is 2.12.0, and worker 0" in found[2, "torch"]


class Heard:
    """A board whose calls are made at once."""

    def __init__(self) -> None:
        self.beats: list[dict[str, Any]] = []
        self.beat = self

    def remote(self, rank: int, beat: dict[str, Any]) -> None:
        self.beats.append({"rank": rank, **beat})


def test_a_thread_that_is_stuck_in_io_still_has_a_heartbeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cmoe.run.heartbeat.BEAT_S", 0.05)
    heard, (read, write) = Heard(), os.pipe()

    def work() -> None:
        heartbeat = Heartbeat(heard, 3)
        heartbeat.start()
        heartbeat.reached({"index": 0, "phase": "train", "step": 4, "steps": 9, "loss": 1.0})
        os.read(read, 1)  # a disk that doesn't answer
        heartbeat.stop()

    thread = threading.Thread(target=work)
    thread.start()
    while len(heard.beats) < 4:
        time.sleep(0.01)
    os.write(write, b".")
    thread.join()
    last = heard.beats[3]
    assert last["place"] == {"index": 0, "phase": "train", "step": 4, "steps": 9}
    assert (last["rank"], last["pid"], last["count"]) == (3, os.getpid(), 1)
    assert "work (test_stalls.py:" in last["at"]
    assert not last["waits"]


def test_a_thread_in_a_collective_is_seen_to_wait() -> None:
    import torch.distributed as dist

    from cmoe.common.group import Group

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        seen: list[dict[str, Any]] = []

        me = threading.get_ident()

        class Looks:
            def __reduce__(self) -> Any:  # while the collective serializes it
                looks = threading.Thread(target=lambda: seen.append(doing(me)))
                looks.start()
                looks.join()
                return (str, ())

        Group(0, 2).gather(Looks())
    finally:
        dist.destroy_process_group()
    assert seen[0]["waits"]
    assert seen[0]["at"].startswith("gather (group.py:")


NODES = ({"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0})


def test_workers_that_can_not_be_placed_say_what_is_asked_and_what_is_free() -> None:
    text = waiting(12, 2, {"CPU": 2, "GPU": 1}, NODES, {"CPU": 5.0})
    assert "2 workers with 2 CPUs, 1 GPU each" in text
    assert "6 CPUs, 2 GPUs in all on 2 machines" in text
    assert "5 CPUs, 0 GPUs free" in text
    assert "never" not in text
    assert "the same command" not in text
    text = waiting(QUIET_S, 2, {"CPU": 2, "GPU": 1}, NODES, {"CPU": 5.0})
    assert "If nobody else uses the rest, Ray has lost count of it" in text
    assert text.endswith("end this job, and the same command goes on with what was saved")


@pytest.mark.parametrize(
    ("workers", "each", "room"),
    [
        (3, {"CPU": 1, "GPU": 1}, 2),
        (2, {"CPU": 3}, 1),  # six in all, and no machine with three twice
        (7, {"CPU": 1}, 6),
        (1, {"CPU": 1, "TPU": 1}, 0),
    ],
)
def test_workers_that_never_fit_are_told_so(workers: int, each: Any, room: int) -> None:
    assert fitting(each, NODES) == room
    text = waiting(12, workers, each, NODES, {"CPU": 6.0, "GPU": 2.0})
    assert f"room for {room} of these workers" in text
    assert "unless machines are added it never starts" in text
