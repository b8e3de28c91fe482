"""What stands behind a gateway: locators and executors, and the tasks that they have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, Self, TypeVar

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from cmoe.common import metrics
from cmoe.common.instructions import Instructions
from cmoe.modeling.routers import BASE
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.metrics import made
from cmoe.serving.gateway.protocol import MODEL, no_model
from cmoe.serving.messages import BEHIND, AnswerRequest, AnyPrompt, Located, Prompt, Reply
from cmoe.serving.settings import ServeConfig

Handle = DeploymentHandle[Any]
State = Mapping[str, Any]
"""What replicas say of themselves: tasks, version, why a primitive is refused, the last look."""
T = TypeVar("T")

STATE_S = 2.0  # until a deployment that doesn't say how it is counts as away
TRIES = 2  # of what a replica was lost with: it may be what the replica was lost by
BEHIND_TRIES, BEHIND_S = 3, 0.2  # of what a replica has too few tasks for, and a pause between


class Replicas:
    """The locators and executors of a service.

    Args:
        config: The service.
        executor: The executors.
        locator: The locators; None where the executors locate.

    Attributes:
        inline: Whether the executors locate.
        instructions: Of the tasks that this gateway has heard of; None where a task's aren't known.
    """

    def __init__(self, config: ServeConfig, executor: Handle, locator: Handle | None) -> None:
        self._executor, self._locator = executor, locator or executor
        self.inline = locator is None
        # What arrives while the locators are busy goes there together: one call for many prompts
        # costs little more than one for a single prompt.
        self._locate_batched: Any = serve.batch(
            max_batch_size=config.batch,
            batch_wait_timeout_s=0.0,
            max_concurrent_batches=config.locating,
        )(self._locate)
        self._tasks: tuple[str, ...] = ()
        self.instructions: tuple[Instructions | None, ...] = ()
        self._asking, self._asked_at = asyncio.Lock(), -STATE_S
        self._states: Mapping[str, State | None] = {}
        self._locate_s, self._locate_batch = (
            made(metrics.LOCATE_TIME),
            made(metrics.LOCATE_BATCH),
        )

    # Tasks

    async def task_names(self, count: int) -> tuple[str, ...]:
        """Names of the store's tasks: at least `count`, if a locator knows so many."""
        if len(self._tasks) < count:
            state = await _tried(lambda: self._locator.state.remote(count))
            if len(state["tasks"]) > len(self._tasks):
                self._tasks = tuple(state["tasks"])
                self.instructions = tuple(state["instructions"])
        return self._tasks

    async def latest_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that a locator has now."""
        state = await _tried(lambda: self._locator.state.remote())
        return tuple(state["tasks"])

    def task_name(self, task: int) -> str | None:
        """Name of a task that this gateway has heard of; None for the base."""
        return None if task == BASE else self._tasks[task]

    async def locate(self, prompt: Prompt) -> Located:
        """The task of a prompt.

        Raises:
            RequestError: No locator can tell the task's name yet.
        """
        start = time.monotonic()
        located: Located = await self._locate_batched(prompt)
        self._locate_s.observe(time.monotonic() - start)
        count = len(located.location.scores)
        if len(await self.task_names(count)) < count:
            raise behind()
        return located

    async def _locate(self, prompts: list[Prompt]) -> list[Located]:
        self._locate_batch.observe(len(prompts))
        located: list[Located] = await _tried(lambda: self._locator.locate.remote(prompts))
        return located

    async def index(self, task: str) -> int:
        """Index of a task.

        Raises:
            RequestError: There is no such task.
        """
        names = self._tasks
        if task not in names:
            names = await self.task_names(len(names) + 1)
        if task not in names:
            raise no_model(f"{MODEL}:{task}", names)
        return names.index(task)

    # Answers

    def answer(self, request: AnswerRequest) -> Answer:
        """Whole answers, to be awaited."""
        return Answer(lambda: self._executor.answer.remote(request))

    def stream(self, request: AnswerRequest) -> Answer:
        """Answers in parts, to be iterated over."""
        streaming: Any = self._executor.options(stream=True)
        return Answer(lambda: streaming.stream.remote(request))

    async def whose_experts(self, prompt: AnyPrompt, task: int) -> Sequence[float] | None:
        """The share of each task's experts in a prompt's pass; None where no executor can tell."""
        found: Sequence[float] | None = await _tried(
            lambda: self._executor.whose_experts.remote(prompt, task)
        )
        return found

    async def learn_names(self, reply: Reply) -> None:
        """Ask for the names of the tasks in a reply's location, if this gateway lacks them."""
        if reply.part.location is not None:
            await self.task_names(len(reply.part.location.scores))

    # States

    async def states(self) -> Mapping[str, State | None]:
        """The state of each deployment, and None where it has no replica.

        They are asked for once a second at most, however many want to know.
        """
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if now - self._asked_at > STATE_S / 2:
                handles = {"executor": self._executor}
                if not self.inline:
                    handles["locator"] = self._locator
                states = await asyncio.gather(*map(_state, handles.values()))
                self._states = dict(zip(handles, states, strict=True))
                self._asked_at = asyncio.get_running_loop().time()
        return self._states

    async def ready(self) -> bool:
        """Whether every task of the version that this service answers with can be answered.

        A replica may have fewer tasks for as long as it takes up the others; not where it can't.
        """
        states = (await self.states()).values()
        served = max([len(self._tasks), *(len(s["latest"]) for s in states if s)])
        return all(s and (len(s["tasks"]) >= served or not s["refused"]) for s in states)


class Answer:
    """What answers a request, on its way from an executor: whole answers, or their parts.

    It is asked for again where its executor was lost or has too few tasks, as long as nothing of it
    has come.

    Args:
        send: Sends the request.
    """

    def __init__(self, send: Callable[[], Any]) -> None:
        self._send, self._begun = send, False
        self._response: Any = None

    def cancel(self) -> None:
        """Tell the executor that nobody waits any longer."""
        if self._response is not None:
            self._response.cancel()

    def __await__(self) -> Generator[Any, None, tuple[Reply, ...]]:
        return self._first(lambda response: response).__await__()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        if self._begun:
            reply: Reply = await anext(self._response)
            return reply
        (reply,) = await self._first(_next)
        return reply

    async def _first(
        self, replies_of: Callable[[Any], Awaitable[tuple[Reply, ...]]]
    ) -> tuple[Reply, ...]:
        async def asked() -> tuple[Reply, ...]:
            self._response = self._send()
            return await replies_of(self._response)

        for _ in range(BEHIND_TRIES):
            replies = await _tried(asked)
            if replies[0].part.failure != BEHIND:
                self._begun = True
                return replies
            await asyncio.sleep(BEHIND_S)
        raise behind()


async def _next(response: Any) -> tuple[Reply, ...]:
    """The next part of a stream, alone."""
    return (await anext(response),)


def behind() -> RequestError:
    """No replica that was asked has the request's task yet."""
    return RequestError(503, "a new task is on its way; try again", code="behind", retry_after=1)


async def _tried(call: Callable[[], Awaitable[T]]) -> T:
    """What a replica replies; another one is asked where the first was lost meanwhile."""
    for _ in range(TRIES - 1):
        try:
            return await call()
        except RayActorError:
            continue
    return await call()


async def _state(handle: Handle) -> State | None:
    try:
        asked = handle.broadcast("state")
        found = await asked.results_async(timeout_s=STATE_S, return_exceptions=True)
    except Exception:  # whatever happened to it, it isn't there
        return None
    states = [state for state in found if not isinstance(state, BaseException)]
    return _together(states) if states else None


def _together(states: Sequence[State]) -> State:
    """The state of a deployment: that of the replica with the fewest tasks, the oldest look, the
    first refusal, and the sum of the answers under way.
    """
    least = min(states, key=lambda state: len(state["tasks"]))
    found = {
        **{name: value for name, value in least.items() if name != "instructions"},
        "latest": max((state["tasks"] for state in states), key=len),
        "refused": next((s["refused"] for s in states if s["refused"]), None),
        "looked_s_ago": max(state["looked_s_ago"] for state in states),
        "replicas": len(states),
    }
    sums = [name for name in ("running", "waiting") if name in least]
    return found | {name: sum(state[name] for state in states) for name in sums}
