"""The replicas of locator and executor, which follow their store."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cmoe.common import metrics
from cmoe.modeling.routers import BASE
from cmoe.serving.bases import UnservedBaseError
from cmoe.serving.engines.executor import Executor, ExplainingExecutor, LocatingExecutor
from cmoe.serving.gateway.metrics import made
from cmoe.serving.messages import BEHIND, AnswerPart, AnswerRequest, Located, Prompt, Reply
from cmoe.serving.replica_port import keep_on_loopback
from cmoe.serving.settings import ServeConfig
from cmoe.serving.store_follower import StoreFollower, open_store

if TYPE_CHECKING:
    from cmoe.serving.served_model import Served

logger = logging.getLogger("ray.serve")


class LocatorReplica:
    """Locates prompts by the frozen base up to the feature's layer and the bank of locators."""

    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc]
        from cmoe.serving.served_model import ServedLocator

        keep_on_loopback()
        store = await open_store(config)
        self._model = await ServedLocator.load(store, config)
        self._follower = await StoreFollower.start(store, self._model, config)

    async def locate(self, prompts: list[Prompt]) -> list[Located]:
        # In the requests' own event loop: a pass that doesn't end also keeps `check_health` from
        # answering, and so Ray replaces the replica.
        return self._follower.versioned(self._model.locate(prompts))

    async def state(self, min_tasks: int = 0) -> dict[str, Any]:
        """This replica's tasks and version; it catches up first if it has fewer tasks."""
        await self._follower.catch_up(min_tasks)
        return self._follower.state()

    async def check_health(self) -> None:
        _require_unstuck(self._model)


class ExecutorReplica:
    """Answers prompts with an executor, which it knows by its interface alone."""

    async def __init__(self, config: ServeConfig, executor: type[Executor]) -> None:  # type: ignore[misc]
        keep_on_loopback()
        store = await open_store(config)
        try:
            self._executor = await executor.load(store, config)
        except UnservedBaseError as error:
            logger.error("%s", error)  # the trace that Ray writes of it says no more
            raise
        self._follower = await StoreFollower.start(store, self._executor, config)
        self._running, self._waiting = made(metrics.RUNNING), made(metrics.WAITING)
        self._queue_s, self._token_s = made(metrics.QUEUE_TIME), made(metrics.TOKEN_TIME)
        self._first_token_s = made(metrics.FIRST_TOKEN_TIME)

    async def answer(self, request: AnswerRequest) -> tuple[Reply, ...]:
        """Whole answers, one as a rule."""
        async with aclosing(self._replies(request, stream=False)) as replies:
            return tuple([reply async for reply in replies])

    async def stream(self, request: AnswerRequest) -> AsyncGenerator[Reply]:
        """An answer in parts, as its tokens come."""
        async with aclosing(self._replies(request, stream=True)) as replies:
            async for reply in replies:
                yield reply

    async def _replies(self, request: AnswerRequest, *, stream: bool) -> AsyncGenerator[Reply]:
        await self._follower.catch_up(request.min_tasks)
        count, task = len(self._executor.tasks), request.task
        if count < request.min_tasks:
            logger.error("has %d tasks of %d: %s", count, request.min_tasks, self._follower.refused)
            yield Reply(AnswerPart(failure=BEHIND), str(self._follower.version))
            return
        if task is None and not count:
            task = BASE
        answer = self._executor.submit(request.prompt, task, request.sampling, stream=stream)
        async with aclosing(answer) as parts:
            async for part in parts:
                self._measure(part)
                yield self._reply(part)
        self._load()

    async def whose_experts(self, prompt: Prompt, task: int) -> list[float] | None:
        """As `ExplainingExecutor`'s; None where the executor can't tell, or lacks the task."""
        await self._follower.catch_up(task + 1)
        if not isinstance(self._executor, ExplainingExecutor) or task >= len(self._executor.tasks):
            return None
        return await self._executor.whose_experts(prompt, task)

    def _reply(self, part: AnswerPart) -> Reply:
        """A part with the store's version that answers, or that it was located among."""
        count = len(self._executor.tasks if part.location is None else part.location.scores)
        return Reply(part, str(self._follower.version_of(count)))

    def _load(self) -> tuple[int, int]:
        """How many answers run and wait; that is measured, too."""
        running, waiting = self._executor.running, self._executor.waiting
        self._running.set(running)
        self._waiting.set(waiting)
        return running, waiting

    def _measure(self, part: AnswerPart) -> None:
        if not part.finish:
            return
        self._load()
        tags = {"task": "base" if part.task == BASE else self._executor.tasks[part.task]}
        self._queue_s.observe(part.queued_s, tags)
        self._first_token_s.observe(part.first_token_s, tags)
        if part.tokens > 1:
            seconds = part.last_token_s - part.first_token_s
            self._token_s.observe(seconds / (part.tokens - 1), tags)

    async def state(self, min_tasks: int = 0) -> dict[str, Any]:
        """As the locator's, and how many answers run and wait."""
        await self._follower.catch_up(min_tasks)
        running, waiting = self._load()
        return self._follower.state() | {"running": running, "waiting": waiting}

    def check_health(self) -> None:
        _require_unstuck(self._executor)


class LocatingExecutorReplica(ExecutorReplica):
    """The executor of a store whose locator is placed inline: it also locates."""

    async def locate(self, prompts: list[Prompt]) -> list[Located]:
        assert isinstance(self._executor, LocatingExecutor)
        return self._follower.versioned(await self._executor.locate(prompts))


def _require_unstuck(worker: Executor | Served[Any]) -> None:
    """Ray replaces a replica whose health check raises."""
    if (reason := worker.stuck()) is not None:
        raise RuntimeError(reason)
