"""The builtin executor's own side of the interface: parts as they come, growth between them."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from support.mini_store import collator, copy_prefix

from cmoe.data.samples import Sample
from cmoe.serving.engines.builtin.executor import BuiltinExecutor
from cmoe.serving.messages import AnswerPart, Prompt, Sampling
from cmoe.serving.prompts import to_arrays
from cmoe.serving.settings import EngineConfig, ServeConfig
from cmoe.store.log import Store

LONG = Sampling(60, temperature=5.0, seed=1)


@pytest.fixture(autouse=True)
def own_switch_interval() -> Iterator[None]:
    """Loading an executor changes the interpreter's; tests of others keep theirs."""
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def prompt(sample: Sample) -> Prompt:
    return to_arrays(collator().prompts([sample]))


async def parts(
    executor: BuiltinExecutor, sample: Sample, task: int | None, *, stream: bool
) -> list[AnswerPart]:
    async with aclosing(executor.submit(prompt(sample), task, LONG, stream=stream)) as answer:
        return [part async for part in answer]


async def between_passes(executor: BuiltinExecutor) -> None:
    await asyncio.wrap_future(executor._scheduler.between(lambda: None))


def test_an_answer_goes_on_while_the_executor_grows_and_locates(
    tmp_path: Path, stores: dict[str, Store], samples: list[Sample]
) -> None:
    """Parts and whole say the same, and what was begun before a task came ends as it would have."""
    store = copy_prefix(stores["front"], tmp_path / "store", 2)

    async def answers() -> None:
        executor = await BuiltinExecutor.load(Store.open(store.url), ServeConfig(store.url))
        assert executor.tasks == store.tasks
        (whole,) = await parts(executor, samples[0], 1, stream=False)
        assert (whole.finish, whole.task, whole.location) == ("length", 1, None)
        submitted = executor.submit(prompt(samples[0]), 1, LONG, stream=True)
        async with aclosing(submitted) as answer:
            texts = [(await anext(answer)).text]
            store.append(stores["front"].read(2))
            await executor.grow(store)
            assert executor.tasks == stores["front"].tasks
            (location,) = await executor.locate([prompt(samples[2])])
            assert len(location.scores) == 3
            texts += [part.text async for part in answer]
        assert "".join(texts) == whole.text
        (located,) = await parts(executor, samples[2], None, stream=False)
        assert located.location is not None
        assert (located.location.task, located.location.unknown) == (
            location.task,
            location.unknown,
        )
        assert located.task == location.task
        async with aclosing(executor.submit(prompt(samples[0]), 1, LONG, stream=True)) as left:
            await anext(left)
        assert (await parts(executor, samples[1], 0, stream=False))[-1].finish
        await between_passes(executor)
        assert (executor.running, executor.waiting) == (0, 0), "who left runs no more"
        executor.close()

    asyncio.run(answers())


def test_a_stuck_executor_says_why(stores: dict[str, Store]) -> None:
    store = stores["front"]
    engine = EngineConfig(stuck_s=0.05)

    async def answers() -> None:
        config = ServeConfig(store.url, engine=engine)
        executor = await BuiltinExecutor.load(Store.open(store.url), config)
        assert executor.stuck() is None
        go_on = threading.Event()
        executor._scheduler.between(go_on.wait)
        await asyncio.sleep(0.2)
        assert "a pass takes 0 s, or the engine has ended" in (executor.stuck() or "")
        go_on.set()
        await between_passes(executor)
        executor._scheduler.failures = 3
        assert executor.stuck() == "the last 3 passes failed"
        executor._served._broken = "half of it"
        assert executor.stuck() == "a primitive was taken in part: half of it"
        executor.close()

    asyncio.run(answers())
