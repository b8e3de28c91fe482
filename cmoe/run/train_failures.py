"""Why Ray Train lost its workers, in sentences; and the callback that hears of it as it happens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    CollectiveTimeoutError,
    InsufficientClusterResourcesError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    ErroredState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
    ShuttingDownState,
)
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision, ScalingDecision
from ray.train.v2.api.exceptions import (
    ControllerError,
    PreemptionError,
    TrainingFailedError,
    WorkerGroupError,
)

from cmoe.common.storage import StorageError, storage_error
from cmoe.common.storage_errors import WRITTEN

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.controller.state import TrainControllerState

LOW_MEMORY = re.compile(r"OUT_OF_MEMORY|low on memory|memory usage threshold", re.I)
NODE_LOST = re.compile(
    r"node (has )?(died|failed|crashed)|node was terminated|missing too many heartbeats", re.I
)
KILLED = re.compile(r"connection error code|SIGKILL", re.I)
LENGTH = 300  # characters of an error that is Ray's or a library's


def causes(error: BaseException) -> list[tuple[int | None, str]]:
    """What happened to which worker, as `TrainingFailedError` and its kinds tell it.

    Returns:
        Rank and sentence; the rank is None where it is no single worker's. Those that are lost
        come before those that failed for want of them.
    """
    if isinstance(error, PreemptionError):
        ranks = ", ".join(map(str, error.preemption_info.preempted_ranks))
        return [(None, f"the machine of worker {ranks} was taken away")]
    if isinstance(error, ControllerError):
        return [(None, _startup(error.controller_failure))]
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        found = [(rank, *_worker(one)) for rank, one in error.worker_failures.items()]
        return [(rank, text) for rank, text, lost in sorted(found, key=lambda f: (not f[2], f[0]))]
    return [(None, short(error))]


def storage_failure(error: TrainingFailedError, url: str) -> StorageError | None:
    """What ended the run where Ray Train itself couldn't keep its state at `url`."""
    failure = error.controller_failure if isinstance(error, ControllerError) else None
    return None if failure is None else storage_error(failure, url, WRITTEN)


def _startup(error: BaseException) -> str:
    insufficient = isinstance(error, InsufficientClusterResourcesError)
    why = " ".join(str(error).split()) if insufficient else short(error)
    return f"the workers could not be started: {why}"


def _worker(error: BaseException) -> tuple[str, bool]:
    """What happened to a worker, and whether it is the one that was lost."""
    if isinstance(error, WorkerHealthCheckFailedError):
        error = error.health_check_failure
    if isinstance(error, RayActorError):
        return death(error.preempted, str(error)), True
    if isinstance(error, WorkerHealthCheckTimeoutError):
        asked = re.search(r"hanging for (\d+)", str(error))
        return f"did not answer for {asked[1] if asked else 'too many'} s", True
    if isinstance(error, CollectiveTimeoutError):
        late = re.search(r"not joined the collective operation: \[([\d, ]*)\]", str(error))
        of = f"worker {late[1]}" if late else "other workers"
        return f"waited for {of} as long as cluster.timeout_s allows", False
    if "timed out" in str(error).lower():
        return f"waited for others as long as cluster.timeout_s allows: {short(error)}", False
    return f"failed: {short(error)}", False


def death(preempted: bool, text: str) -> str:
    """How an actor died, from what Ray says of it.

    Args:
        preempted: Whether its machine was taken away.
        text: Ray's own words.
    """
    if preempted:
        return "was lost: its machine was taken away"
    if LOW_MEMORY.search(text):
        return f"was killed by Ray as its machine ran out of memory: {_sentence(LOW_MEMORY, text)}"
    if NODE_LOST.search(text):
        return f"was lost with its machine: {_sentence(NODE_LOST, text)}"
    if KILLED.search(text):
        return (
            "died: its process was killed, by the system where memory ran out (see `dmesg` on its "
            "machine) or by hand, or it crashed (see its log)"
        )
    return f"died: {_cut(' '.join(text.split()))}"


def _sentence(pattern: re.Pattern[str], text: str) -> str:
    """The line of a text where a pattern is."""
    return _cut(next(line.strip() for line in text.splitlines() if pattern.search(line)))


def short(error: BaseException) -> str:
    """An error's class and first line."""
    lines = str(error).strip().splitlines()
    return _cut(f"{type(error).__name__}: {lines[0] if lines else ''}".removesuffix(": "))


def _cut(text: str) -> str:
    return text if len(text) <= LENGTH else f"{text[:LENGTH]} ..."


class OwnFailureError(Exception):
    """A worker failed by itself; the board has the cause."""


class Reporter(ControllerCallback):
    """Posts to the board what Ray Train's controller does with the worker group.

    Events: `scheduling` and `running`, with the group's size; `failed`, with `causes`; `resizing`.

    Args:
        board: The board's actor.
    """

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        state = current_state
        if isinstance(state, ShuttingDownState):
            state = state.next_state
        if isinstance(state, SchedulingState):
            self._group("scheduling", state.scaling_decision)
        elif isinstance(state, RunningState) and not isinstance(previous_state, RunningState):
            self._post("running")
        elif isinstance(state, ResizingState):
            self._group("resizing", state.scaling_decision)
        elif isinstance(state, RestartingState | ReschedulingState | ErroredState) and not (
            state is previous_state or isinstance(previous_state, ShuttingDownState)
        ):
            self._failed(state.training_failed_error)

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """End the run where a worker's failure is its own: a group started again would fail again.

        Raises:
            OwnFailureError: It is; Ray Train doesn't go on from a callback's error.
        """
        cause = ray.get(self._board.cause.remote())
        if cause is not None:
            raise OwnFailureError(cause)

    def _group(self, phase: str, decision: ScalingDecision) -> None:
        if isinstance(decision, ResizeDecision):
            self._post(phase, workers=decision.num_workers)

    def _failed(self, error: TrainingFailedError) -> None:
        told = (OwnFailureError, WorkerGroupStartupTimeoutError)  # by the driver itself
        if not (isinstance(error, ControllerError) and isinstance(error.controller_failure, told)):
            self._post("failed", causes=causes(error))

    def _post(self, phase: str, **more: Any) -> None:
        self._board.post.remote({"phase": phase, **more})
