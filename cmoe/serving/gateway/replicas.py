"""What stands behind a gateway: locators and executors, and the tasks that they have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from typing import Any, NamedTuple

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Histogram

from cmoe.modeling.routers import BASE
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.metrics import BOUNDS
from cmoe.serving.gateway.protocol import MODEL, no_model
from cmoe.serving.messages import AnswerRequest, Located, Prompt, Reply, Sampling
from cmoe.serving.settings import ServeConfig

Handle = DeploymentHandle[Any]
State = Mapping[str, Any]
"""What a replica says of itself: its tasks, its version, and why a primitive is refused."""

STATE_S = 2.0  # until a deployment that doesn't say how it is counts as away


class Route(NamedTuple):
    """A request to an executor, and the prompt's location where a locator found it before."""

    request: AnswerRequest
    located: Located | None


class Replicas:
    """The locators and executors of a service.

    Args:
        config: The service.
        executor: The executors.
        locator: The locators; None where the executors locate.
    """

    def __init__(self, config: ServeConfig, executor: Handle, locator: Handle | None) -> None:
        self._executor, self._locator = executor, locator or executor
        self._inline = locator is None
        # What arrives while the locators are busy goes there together: one call for many prompts
        # costs little more than one for a single prompt.
        self._locate_batched: Any = serve.batch(
            max_batch_size=config.batch,
            batch_wait_timeout_s=0.0,
            max_concurrent_batches=config.locating,
        )(self._locate)
        self._tasks: tuple[str, ...] = ()
        self._asking, self._asked_at = asyncio.Lock(), -STATE_S
        self._states: Mapping[str, State | None] = {}
        self._locate_s = Histogram(
            "cmoe_locate_seconds", "Seconds from a prompt's arrival to its task.", BOUNDS
        )

    # Tasks

    async def task_names(self, count: int) -> tuple[str, ...]:
        """Names of the store's tasks: at least `count`, if a locator knows so many."""
        if len(self._tasks) < count:
            state = await self._locator.state.remote(count)
            self._tasks = max(self._tasks, tuple(state["tasks"]), key=len)
        return self._tasks

    async def latest_tasks(self) -> tuple[str, ...]:
        """Names of the tasks that a locator has now."""
        state = await self._locator.state.remote()
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
            raise RequestError(503, "a new task is on its way; try again", retry_after=1)
        return located

    async def _locate(self, prompts: list[Prompt]) -> list[Located]:
        located: list[Located] = await self._locator.locate.remote(prompts)
        return located

    # Answers

    async def route(self, prompt: Prompt, task: str | None, sampling: Sampling) -> Route:
        """The request to an executor.

        Args:
            prompt: The prompt.
            task: Name of the task that answers; None locates the prompt: here, or else in the
                answering pass.
            sampling: How the answer is sampled.

        Raises:
            RequestError: There is no such task.
        """
        if task is not None:
            index = await self._index(task)
            return Route(AnswerRequest(prompt, index, index + 1, sampling), None)
        if self._inline:
            return Route(AnswerRequest(prompt, None, 0, sampling), None)
        located = await self.locate(prompt)
        count = len(located.location.scores)
        return Route(AnswerRequest(prompt, located.location.task, count, sampling), located)

    async def _index(self, task: str) -> int:
        names = self._tasks
        if task not in names:
            names = await self.task_names(len(names) + 1)
        if task not in names:
            raise no_model(f"{MODEL}:{task}", names)
        return names.index(task)

    def answer(self, request: AnswerRequest) -> Any:
        """A whole answer: an awaitable `Reply` that can be cancelled."""
        return self._executor.answer.remote(request)

    def stream(self, request: AnswerRequest) -> Any:
        """An answer in parts: an async iterator of `Reply` that can be cancelled."""
        streaming: Any = self._executor.options(stream=True)
        return streaming.stream.remote(request)

    async def learn_names(self, reply: Reply) -> None:
        """Ask for the names of the tasks in a reply's location, if this gateway lacks them."""
        if reply.part.location is not None:
            await self.task_names(len(reply.part.location.scores))

    # States

    async def states(self) -> Mapping[str, State | None]:
        """The state of a replica of each deployment, and None where there is none.

        It is asked for once a second at most, however many want to know.
        """
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if now - self._asked_at > STATE_S / 2:
                handles = {"executor": self._executor}
                if not self._inline:
                    handles["locator"] = self._locator
                states = await asyncio.gather(*map(_state, handles.values()))
                self._states = dict(zip(handles, states, strict=True))
                self._asked_at = asyncio.get_running_loop().time()
        return self._states


async def _state(handle: Handle) -> State | None:
    async def asked() -> Any:
        return await handle.state.remote()

    state: Awaitable[State] = asked()
    try:
        return dict(await asyncio.wait_for(state, STATE_S))
    except Exception:  # whatever happened to it, it isn't there
        return None
