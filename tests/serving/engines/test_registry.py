"""Executors are found by name, and a service needs no more of one than the interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from cmoe.serving.app import application
from cmoe.serving.engines import registry
from cmoe.serving.engines.builtin.executor import BuiltinExecutor
from cmoe.serving.engines.executor import LocatingExecutor
from cmoe.serving.engines.registry import executor_class, register_executor
from cmoe.serving.messages import BEHIND, AnswerPart, AnswerRequest, Prompt, Reply, Sampling
from cmoe.serving.replicas import ExecutorReplica
from cmoe.serving.settings import AuthConfig, EngineConfig, ServeConfig
from cmoe.store.log import Store

PROMPT = {"input_ids": np.array([[1, 5, 7]])}


class LengthExecutor:
    """Answers a prompt with its length, a digit a part; knows nothing of models."""

    WRITTEN: ClassVar[bool] = False
    SAMPLES: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        self.tasks: tuple[str, ...] = ()
        self.running = self.waiting = 0
        self.reason: str | None = None

    @staticmethod
    def require_servable(base: Any, images: int) -> None:
        """Every base is."""

    @classmethod
    async def load(cls, store: Store, config: ServeConfig) -> Self:
        return cls()

    async def submit(
        self, prompt: Prompt, task: int | None, sampling: Sampling, *, stream: bool
    ) -> AsyncGenerator[AnswerPart]:
        length = prompt["input_ids"].shape[1]
        if stream:
            yield AnswerPart(text=str(length), tokens=1, task=task or 0)
        text = "." if stream else f"{length}."
        yield AnswerPart(text=text, tokens=2, task=task or 0, finish="stop")

    async def grow(self, store: Store) -> None:
        self.tasks = store.tasks

    def stuck(self) -> str | None:
        return self.reason


@pytest.fixture
def length(monkeypatch: pytest.MonkeyPatch) -> type[LengthExecutor]:
    monkeypatch.setattr(registry, "_EXECUTORS", {"builtin": BuiltinExecutor})
    return register_executor("length")(LengthExecutor)


def config(store: Store, kind: str = "length") -> ServeConfig:
    return ServeConfig(store.url, engine=EngineConfig(kind=kind), auth=AuthConfig(required=False))


def test_executors_are_found_by_name(length: type[LengthExecutor]) -> None:
    assert executor_class("builtin") is BuiltinExecutor
    assert executor_class("length") is length
    with pytest.raises(ValueError, match=r"no executor 'lenght'; .* the nearest is length"):
        executor_class("lenght")


def test_a_replica_answers_grows_and_reports_by_the_interface_alone(
    length: type[LengthExecutor], stores: dict[str, Store]
) -> None:
    async def answers() -> None:
        replica = ExecutorReplica.__new__(ExecutorReplica)
        await replica.__init__(config(stores["front"]), length)  # type: ignore[misc]
        version = f"3-{stores['front'].records()[2].digest[:12]}"
        request = AnswerRequest(PROMPT, 1, 3, Sampling(4))
        assert await replica.answer(request) == (
            Reply(AnswerPart(text="3.", tokens=2, task=1, finish="stop"), version),
        )
        parts = [reply.part.text async for reply in replica.stream(request)]
        assert parts == ["3", "."]
        (lacking,) = await replica.answer(AnswerRequest(PROMPT, 3, 4, Sampling(4)))
        assert lacking.part.failure == BEHIND
        assert (await replica.state())["tasks"] == stores["front"].tasks
        replica.check_health()
        replica._executor.reason = "it hangs"  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match="it hangs"):
            replica.check_health()

    asyncio.run(answers())


def test_the_executor_locates_where_it_can_and_the_store_says_so(
    length: type[LengthExecutor], stores: dict[str, Store]
) -> None:
    """Else a locator stands in front, which finds the same."""
    assert issubclass(BuiltinExecutor, LocatingExecutor)
    assert not issubclass(length, LocatingExecutor)

    def in_front(placement: str, *kind: str) -> bool:
        gateway: Any = application(config(stores[placement], *kind), {})
        return gateway._bound_deployment.init_args[3] is not None

    assert not in_front("inline", "builtin")
    assert in_front("inline")
    assert in_front("front", "builtin")
    assert in_front("front")
