"""Why Ray Train lost its workers, in the words that Ray has for it."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private import worker as rays_worker
from ray.exceptions import (
    ActorDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
)
from ray.train.v2._internal.exceptions import (
    BroadcastCollectiveTimeoutError,
    InsufficientClusterResourcesError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.controller.state import (
    ErroredState,
    ReschedulingState,
    RestartingState,
    RunningState,
    SchedulingState,
    ShuttingDownState,
)
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

from cmoe.common.errors import RunError
from cmoe.run.monitoring import lost_ray
from cmoe.run.monitoring.lost_ray import Head, Raylet, losses_told
from cmoe.run.train_failures import Reporter, causes, storage_failure

SIGKILL = """The actor died unexpectedly before finishing this task.
\tclass_name: RayTrainWorker
\tpid: 4242
\tip: 10.0.0.3
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes \
include: (1) the process was killed with SIGKILL by the OOM killer due to high memory usage."""
MEMORY = """The actor died unexpectedly before finishing this task.
\tpid: 4242
The actor is dead because its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY Worker \
exit detail: Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.3) was 15.2GB / 16GB (0.95), which exceeds the threshold of 0.95."""
NODE = """The actor died unexpectedly before finishing this task.
The actor died because its node has died. Node Id: 5c8b
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many \
heartbeats"""


def died(text: str, preempted: bool = False) -> Exception:
    actor = RayActorError("a1", text, preempted=preempted)
    return WorkerHealthCheckFailedError("A worker health check failed.", actor)


PEER = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.3]:41234")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (died(SIGKILL), "its process was killed"),
        (died(MEMORY), "killed by Ray as its machine ran out of memory"),
        (died(NODE), "was lost with its machine"),
        (died(NODE, preempted=True), "its machine was taken away"),
        (ActorDiedError(), "died"),
        (WorkerHealthCheckTimeoutError("hanging for 601.20 seconds."), "not answer for 601 s"),
    ],
)
def test_the_lost_worker_comes_before_those_that_failed_for_want_of_it(
    failure: Exception, said: str
) -> None:
    found = causes(WorkerGroupError("long text", {0: PEER, 1: failure, 2: PEER}))
    assert [rank for rank, _ in found] == [1, 0, 2]
    assert said in found[0][1]
    assert "Connection closed by peer" in found[1][1]
    assert all("\n" not in text and len(text) < 500 for _, text in found)


def test_a_time_out_names_those_that_did_not_come() -> None:
    late = BroadcastCollectiveTimeoutError(60.0, [1, 3], 60.0)
    ((_, text),) = causes(WorkerGroupError("", {0: late}))
    assert "waited for worker 1, 3" in text
    assert "cluster.timeout_s" in text
    gloo = RuntimeError("[gloo/unbound_buffer.cc:78] Timed out waiting 60000ms for recv operation")
    ((_, text),) = causes(WorkerGroupError("", {0: gloo}))
    assert "cluster.timeout_s" in text


def test_other_ends_have_causes_too() -> None:
    info: Any = SimpleNamespace(preempted_ranks=[1])
    assert causes(PreemptionError(info))[0][1] == "the machine of worker 1 was taken away"
    lacks = InsufficientClusterResourcesError("Insufficient.\nRequires 2 GPU, has at most 1.")
    assert "has at most 1" in causes(ControllerError(lacks))[0][1]
    start = WorkerGroupStartupFailedError("One of the worker actors failed.\nTraceback ...")
    assert "could not be started" in causes(ControllerError(start))[0][1]
    assert causes(ValueError("odd"))[0][1] == "ValueError: odd"


CONTROLLER = SIGKILL.replace("RayTrainWorker", "TrainController")
RAYLET = """The actor died unexpectedly before finishing this task.
\tclass_name: Board
The actor is dead because its owner has died. Owner worker exit type: SYSTEM_ERROR Worker exit \
detail: Owner's node has crashed."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RayActorError("a1", CONTROLLER), "the driver's TrainController died: its process was kil"),
        (RayActorError("a1", RAYLET), "the raylet of the driver's machine died"),
        (RaySystemError("Broken pipe\nmore"), "RaySystemError: System error: Broken"),
    ],
)
def test_a_driver_that_loses_ray_itself_says_so_in_one_line(error: RayError, said: str) -> None:
    with pytest.raises(RunError) as raised, losses_told():
        raise error
    assert str(raised.value).startswith(f"Ray itself was lost: {said}")
    assert str(raised.value).endswith("the same command goes on with what was saved")
    assert "\n" not in str(raised.value)


def test_a_storage_that_refuses_ray_is_told_as_one() -> None:
    """Ray's controller keeps its own state, and hands on an error without what was behind it."""
    url = "s3://bucket/runs/x/train"
    told = storage_failure(ControllerError(PermissionError("Access Denied")), url)
    assert str(told).startswith(f"{url}: can't be written: the access key has no permission")
    assert storage_failure(ControllerError(WorkerGroupStartupTimeoutError(2)), url) is None
    assert storage_failure(WorkerGroupError("", {0: PermissionError("of a worker")}), url) is None


def test_where_memory_ran_out_it_is_said_what_to_free() -> None:
    """In Ray's own words, of a run under its memory monitor."""
    words = "1 worker(s) were killed due to the node running low on memory.\nMemory on the node ..."
    said = r"memory.*\. Free memory on that machine, or lower"
    for error in (OutOfMemoryError(words), RayActorError("a1", MEMORY)):
        with pytest.raises(RunError, match=said), losses_told():
            raise error


def test_what_failed_in_what_ray_carried_is_no_loss_of_ray() -> None:
    with pytest.raises(RayTaskError), losses_told():
        raise RayTaskError("work", "a traceback", ValueError("a bug"))


def test_a_head_that_is_away_is_told_once_and_once_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, there = [0.0], [True]
    monkeypatch.setattr(lost_ray.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(lost_ray, "_answers", lambda: there[0])
    head, said = Head(), {}
    for clock[0] in range(100):
        there[0] = not 20 <= clock[0] < 70
        if text := head.look():
            said[clock[0]] = text
    away, back = said
    assert 20 + lost_ray.AWAY_S - lost_ray.LOOK_S <= away <= 20 + lost_ray.AWAY_S + lost_ray.LOOK_S
    assert "Ray ends this job after 60 s" in said[away]
    assert 70 <= back <= 70 + lost_ray.LOOK_S
    assert said[back] == "Ray's head answers again"


def test_a_raylet_that_is_gone_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Known by the system's list of sockets: nobody connects to it for that."""
    name = str(tmp_path / "raylet")
    node = SimpleNamespace(raylet_socket_name=name)
    monkeypatch.setattr(rays_worker, "global_worker", SimpleNamespace(node=node))
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    raylet = Raylet()
    assert raylet.look() is None, "it was never there"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        assert raylet.look() is None
    assert "the raylet of this machine, Ray's part of it, is gone" in (raylet.look() or "")
    assert raylet.look() is None
    assert Raylet(tmp_path / "none").look() is None, "another system"


class Posts:
    """A board whose calls are made at once."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.post = self

    def remote(self, event: dict[str, Any]) -> None:
        self.events.append({k: v for k, v in event.items() if k != "time"})


def test_what_the_controller_does_is_posted_once() -> None:
    board = Posts()
    reporter = Reporter(board)
    lost = RestartingState(WorkerGroupError("", {1: died(SIGKILL)}))
    room = SchedulingState(ResizeDecision(num_workers=2, resources_per_worker={"CPU": 1}))
    late = ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(2)))
    end = ErroredState(lost.training_failed_error)
    states: list[Any] = [room, RunningState(), RunningState(), lost, lost, room, late, room]
    states += [RunningState(), ShuttingDownState(end), end]
    for before, after in zip([RestartingState(PEER), *states], states, strict=False):
        reporter.after_controller_state_update(before, after)
    told = [event["phase"] for event in board.events]
    group = ["scheduling", "running"]
    assert told == [*group, "failed", "scheduling", *group, "failed"]
    assert board.events[0]["workers"] == 2
