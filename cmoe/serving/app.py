"""The deployments of a service: gateway -> locator -> executor, on Ray Serve.

The gateway speaks HTTP, refuses what it must, and turns a conversation into a prompt. The locator
finds the prompt's task by the frozen base's features, in batches. Executors answer, each with one
batch that requests join and leave between tokens.

A log is only added to, so that a task answers the same in every version of the store that has it: a
request sees one version if its executor has at least what its locator had, and an executor that
hasn't looks again before it answers.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.metrics import Gauge, Histogram

from cmoe.modeling.routers import BASE
from cmoe.serving.engines.builtin.batch import padding
from cmoe.serving.engines.builtin.decoding import UnservedBaseError, context_of
from cmoe.serving.engines.builtin.engine import Engine, Event
from cmoe.serving.engines.builtin.store_follower import Following, follow
from cmoe.serving.engines.builtin.verification import require_own_answers
from cmoe.serving.gateway.http import Gateway
from cmoe.serving.gateway.keys import Keys
from cmoe.serving.gateway.metrics import BOUNDS
from cmoe.serving.messages import Arrays, Located, Question, Said
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store

logger = logging.getLogger("ray.serve")
FAILURES = 3
"""Passes that may fail one after the other until a replica counts as unhealthy."""


class _Replica:
    """A model that follows its store while it is being used.

    Args:
        following: The model.
        config: Of the service.
        between: Runs something where nobody uses the model meanwhile.
    """

    def __init__(
        self,
        following: Following,
        config: ServeConfig,
        between: Callable[[Callable[[], None]], Future[None]],
    ) -> None:
        self.following, self._between, self._poll_s = following, between, config.poll_s
        self._looking = asyncio.Lock()
        self._watch = asyncio.get_running_loop().create_task(self._poll())

    async def look(self, needed: int | None = None) -> None:
        """Take what was committed since; only if there are fewer tasks than needed, where given.

        What has begun ends, also where whoever asked for it has gone.
        """
        if needed is not None and self._enough(needed):
            return
        await asyncio.shield(self._look(needed))

    def _enough(self, needed: int) -> bool:
        return len(self.following.model.tasks) >= needed

    async def _look(self, needed: int | None) -> None:
        async with self._looking:
            if needed is not None and self._enough(needed):
                return
            found = await asyncio.to_thread(self.following.look)
            if found:
                await asyncio.wrap_future(self._between(lambda: self.following.take(found)))

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.look()
            except Exception:  # of a storage's own kind: the next look may go well
                logger.exception("can't look into the store")


def _now(call: Callable[[], None]) -> Future[None]:
    """Where nothing runs beside it, a call needs no other place."""
    call()
    done: Future[None] = Future()
    done.set_result(None)
    return done


class Locator:
    """PTL in front: the frozen base up to the feature's layer, and the bank, for many at a time."""

    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc]
        following, processor = await asyncio.to_thread(follow, config)
        self._replica = _Replica(following, config, _now)
        self._pad = padding(processor.tokenizer)

    async def locate(self, prompts: list[Arrays]) -> list[Located]:
        # In the requests' own loop: a pass that doesn't end leaves `check_health`, which runs
        # there, too, without an answer.
        return self._replica.following.locate(prompts, self._pad)

    async def state(self, tasks: int = 0) -> dict[str, Any]:
        """What this replica has; it looks again where it has fewer tasks than that."""
        await self._replica.look(tasks)
        return self._replica.following.state()

    async def check_health(self) -> None:
        """Answers as long as this loop turns, and the model is whole."""
        self._replica.following.require_whole()


def _verified(config: ServeConfig) -> tuple[Following, Any]:
    """As `follow`, once a batch was seen to answer as the base's own `generate` does."""
    try:
        following, processor = follow(config)
        context = context_of(following.model.base.config)
        require_own_answers(following.model, processor, context)
    except UnservedBaseError as error:
        logger.error("%s", error)  # the trace that Ray writes of it says no more
        raise
    return following, processor


class Executor:
    """Answers, with continuous batching; and locates, where the answering pass itself does."""

    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc]
        following, processor = await asyncio.to_thread(_verified, config)
        self._following, self._model = following, following.model
        # Requests and the engine's thread take turns in one interpreter, and a turn of its 5 ms is
        # as long as a small model's token.
        sys.setswitchinterval(5e-4)
        self._pad = padding(processor.tokenizer)
        self._engine = Engine(self._model, processor.tokenizer, config.engine)
        self._replica = _Replica(following, config, self._engine.between)
        waited, first, token = (
            Histogram(f"cmoe_{name}_seconds", text, BOUNDS, ("task",))
            for name, text in (
                ("queue", "Seconds that a prompt waited until it was read."),
                ("first_token", "Seconds from a prompt's arrival to its first token."),
                ("token", "Seconds of a further token."),
            )
        )
        self._waited, self._first, self._token = waited, first, token
        self._running = Gauge("cmoe_running", "Answers that are under way.")

    async def answer(self, question: Question) -> Said:
        """A whole answer."""
        async for said in self._said(question, stream=False):
            if said.finish or said.failure:
                return said
        raise AssertionError("an answer ends")

    async def stream(self, question: Question) -> AsyncIterator[Said]:
        """An answer in parts, as its tokens come."""
        async for said in self._said(question, stream=True):
            yield said

    async def _said(self, question: Question, *, stream: bool) -> AsyncIterator[Said]:
        await self._replica.look(question.tasks)
        if len(self._model.tasks) < question.tasks:
            failure = f"this replica has {len(self._model.tasks)} tasks of {question.tasks}"
            yield Said("", 0, None, failure, None, str(self._following.version))
            return
        if question.task is None and not self._model.tasks:
            question = replace(question, task=BASE)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def listen(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        cancel = self._engine.submit(question.job(stream=stream), listen)
        try:
            while True:
                event = await events.get()
                parts = [event.text]
                while not event.finish and not events.empty():  # what came meanwhile goes with it
                    event = events.get_nowait()
                    parts.append(event.text)
                self._measure(event)
                yield self._part("".join(parts), event)
                if event.finish or event.failure:
                    return
        finally:  # whoever asked may have gone
            cancel()

    def _part(self, text: str, event: Event) -> Said:
        count = len(self._model.tasks) if event.scores is None else len(event.scores)
        version = str(self._following.version_of(count))
        located = None
        if event.scores is not None:
            located = Located(event.task, event.scores, event.unknown, version)
        return Said(text, event.tokens, event.finish, event.failure, located, version)

    def _measure(self, event: Event) -> None:
        if not event.finish:
            return
        task = "base" if event.task == BASE else self._model.tasks[event.task]
        tags = {"task": task}
        self._waited.observe(event.waited, tags)
        self._first.observe(event.first, tags)
        if event.tokens > 1:
            self._token.observe((event.last - event.first) / (event.tokens - 1), tags)

    async def locate(self, prompts: list[Arrays]) -> list[Located]:
        """Where prompts belong."""
        found = self._engine.between(lambda: self._following.locate(prompts, self._pad))
        return await asyncio.wrap_future(found)

    async def state(self, tasks: int = 0) -> dict[str, Any]:
        """As the locator's."""
        await self._replica.look(tasks)
        state = self._following.state()
        self._running.set(self._engine.running)
        return state | {"running": self._engine.running, "waiting": self._engine.waiting}

    def check_health(self) -> None:
        self._following.require_whole()
        if (seconds := self._engine.stuck()) is not None:
            raise RuntimeError(f"a pass takes {seconds:.0f} s, or the engine has ended")
        if self._engine.failures >= FAILURES:
            raise RuntimeError(f"the last {self._engine.failures} passes failed")


def build(args: Mapping[str, Any]) -> Application:
    """The application of a service, as Ray's file of it names it (`import_path`).

    Args:
        args: The tree of a `ServeConfig`.

    Raises:
        ValueError: A setting is wrong, or there is no API key.
        StoreError: There is no store.
    """
    return bound(ServeConfig.of(args), {})


def bound(
    config: ServeConfig, options: Mapping[str, Mapping[str, Any]], answers: type = Executor
) -> Application:
    """The application with Ray's settings of each deployment, and the executor's class; errors as
    in `build`.
    """

    def deployment(kind: type, name: str) -> Any:
        made: Any = serve.deployment(kind, name=name)
        return made.options(**options.get(name, {}))

    keys = Keys.of(config.auth)
    settings = Store.follow(config.store).header.settings
    executor = deployment(answers, "executor").bind(config)
    locator = None
    if settings["locator"]["placement"] == "front":
        locator = deployment(Locator, "locator").bind(config)
    application: Application = deployment(Gateway, "gateway").bind(config, keys, executor, locator)
    return application
