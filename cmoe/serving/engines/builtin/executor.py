"""The builtin executor: continuous batching with the project's own model, on CPUs and GPUs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from cmoe.modeling.pretrained import load_config
from cmoe.serving.bases import base_of, context_of
from cmoe.serving.engines.builtin import decoding
from cmoe.serving.engines.builtin.scheduler import Job, Scheduler
from cmoe.serving.engines.builtin.verification import require_own_answers
from cmoe.serving.engines.registry import register_executor
from cmoe.serving.messages import AnswerPart, Location, Prompt, Sampling
from cmoe.serving.prompts import to_tensors
from cmoe.serving.served_model import ServedModel
from cmoe.serving.settings import EngineConfig, ServeConfig
from cmoe.store.log import Store

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MOST_FAILURES = 3  # passes that may fail one after the other


@register_executor("builtin")
class BuiltinExecutor:
    """An `Executor` that answers as the base's own `generate` does, and also locates.

    Args:
        served: The model that answers; nothing else uses it.
        config: Limits of the batch.
    """

    WRITTEN: ClassVar[bool] = False
    SAMPLES: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, served: ServedModel, config: EngineConfig) -> None:
        self._served = served
        self._scheduler = Scheduler(served.model, served.processor.tokenizer, config)

    @staticmethod
    def require_servable(base: PretrainedConfig, images: int) -> None:
        decoding.require_servable(base)

    @classmethod
    async def load(cls, store: Store, config: ServeConfig) -> Self:
        named = base_of(store, config)
        cls.require_servable(load_config(named.path, revision=named.revision), config.limits.images)
        served = await ServedModel.load(store, config)
        await served.grow(store)
        model, context = served.model, context_of(served.model.base.config)
        await asyncio.to_thread(require_own_answers, model, served.processor, context)
        # Requests and the scheduler's thread take turns in one interpreter. A turn lasts 5 ms by
        # default, as long as a small model's token takes.
        sys.setswitchinterval(5e-4)
        return cls(served, config.engine)

    @property
    def processor(self) -> Any:
        """The base's processor."""
        return self._served.processor

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._served.tasks

    @property
    def running(self) -> int:
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    async def submit(
        self, prompt: Prompt, task: int | None, sampling: Sampling, *, stream: bool
    ) -> AsyncGenerator[AnswerPart]:
        loop, parts = asyncio.get_running_loop(), asyncio.Queue[AnswerPart]()

        def listen(part: AnswerPart) -> None:
            loop.call_soon_threadsafe(parts.put_nowait, part)

        job = Job(to_tensors(prompt), task, sampling, stream)
        cancel = self._scheduler.submit(job, listen)
        try:
            while True:
                part = await parts.get()
                texts = [part.text]
                while not part.finish and not parts.empty():  # parts that came meanwhile go along
                    part = parts.get_nowait()
                    texts.append(part.text)
                yield replace(part, text="".join(texts))
                if part.finish or part.failure:
                    return
        finally:  # the client may have gone
            cancel()

    async def locate(self, prompts: Sequence[Prompt]) -> list[Location]:
        found = self._scheduler.between(lambda: self._served.locate(prompts))
        return await asyncio.wrap_future(found)

    async def whose_experts(self, prompt: Prompt, task: int) -> list[float]:
        found = self._scheduler.between(lambda: self._served.whose_experts(prompt, task))
        return await asyncio.wrap_future(found)

    async def grow(self, store: Store) -> None:
        await self._served.grow(store, self._between)

    async def _between(self, call: Callable[[], None]) -> None:
        await asyncio.wrap_future(self._scheduler.between(call))

    def stuck(self) -> str | None:
        if broken := self._served.stuck():
            return broken
        if (seconds := self._scheduler.stuck()) is not None:
            return f"a pass takes {seconds:.0f} s, or the engine has ended"
        if (failures := self._scheduler.failures) >= MOST_FAILURES:
            return f"the last {failures} passes failed"
        return None

    def close(self) -> None:
        """End the executor's thread; answers under way are not finished."""
        self._scheduler.close()
