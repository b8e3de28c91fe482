"""vLLM gives the answers of the model while its store grows, as they are asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.mini_store import TASKS, collator, copy_prefix
from support.service_client import TOKENS, answer_alone

pytest.importorskip("vllm", reason="runs in vLLM's own environment: `make test-vllm`")

from cmoe.common.reference import Reference
from cmoe.data.images import load_image
from cmoe.data.samples import Sample, Task
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import MINI_BASE
from cmoe.serving.bases import UnservedBaseError
from cmoe.serving.engines.vllm.executor import VllmExecutor
from cmoe.serving.engines.vllm.settings import Capacity, VllmConfig
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.messages import AnswerPart, Sampling
from cmoe.serving.prompts import to_written
from cmoe.serving.settings import EngineConfig, ServeConfig
from cmoe.store.log import Store, StoreError
from cmoe.store.model import load_model


def config(store: Store, tasks: int) -> ServeConfig:
    capacity = Capacity(tasks=tasks, experts=8, rows=32, adapter_rows=8)
    return ServeConfig(
        store.url,
        engine=EngineConfig(kind="vllm", vllm=VllmConfig(capacity=capacity)),
        limits=LimitsConfig(prompt_tokens=448),
    )


class Asked:
    """An executor in an event loop of its own."""

    def __init__(self, store: Store, tasks: int) -> None:
        self._runner = asyncio.Runner()
        self.executor: VllmExecutor = self._runner.run(
            VllmExecutor.load(store, config(store, tasks))
        )

    def grow(self, store: Store) -> None:
        self._runner.run(self.executor.grow(store))

    def parts(
        self, sample: Sample, task: int, sampling: Sampling, *, stream: bool = False
    ) -> list[AnswerPart]:
        """All that it is answered."""
        return self._runner.run(self._parts(sample, task, sampling, stream))

    def answers(
        self, asked: Sequence[tuple[Sample, int]], *, stream: bool = False, **more: Any
    ) -> list[str]:
        """What they are answered, all at a time."""

        async def one(sample: Sample, task: int) -> str:
            parts = await self._parts(sample, task, Sampling(TOKENS, **more), stream)
            assert [part.finish is None for part in parts] == [True] * (len(parts) - 1) + [False]
            assert stream or len(parts) == 1
            return "".join(part.text for part in parts)

        async def every() -> list[str]:
            return await asyncio.gather(*(one(*each) for each in asked))

        return self._runner.run(every())

    async def _parts(
        self, sample: Sample, task: int, sampling: Sampling, stream: bool
    ) -> list[AnswerPart]:
        answer = self.executor.submit(written(sample), task, sampling, stream=stream)
        return [part async for part in answer]

    def close(self) -> None:
        self.executor.close()
        self._runner.close()


def written(sample: Sample) -> Any:
    made = collator()
    images = [load_image(image, made.limits) for image in sample.images]
    return to_written(made._chat(sample.question), images, None, pad=False)


def alone(model: GrowingVLM, asked: Sequence[tuple[Sample, int]]) -> list[str]:
    return [answer_alone(model, s, t)[0] for s, t in asked]


@pytest.fixture(scope="module")
def whole(stores: dict[str, Store]) -> GrowingVLM:
    return load_model(stores["front"], load_base(MINI_BASE)[0])


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Store]) -> Store:
    return copy_prefix(stores["front"], tmp_path_factory.mktemp("growing") / "store", 2)


@pytest.fixture(scope="module")
def asked(growing: Store) -> Iterator[Asked]:
    made = Asked(growing, tasks=3)
    yield made
    made.close()


def mixed(tasks: Sequence[Task], indices: Sequence[int], each: int = 12) -> list[Any]:
    """Samples of all tasks, answered by some of them and by the base, in turns."""
    samples = [task.test[i] for i in range(each) for task in tasks]
    return [(sample, indices[i % len(indices)]) for i, sample in enumerate(samples)]


def test_tasks_and_the_base_are_answered_together_as_the_model_answers_each(
    asked: Asked, whole: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    batch = mixed(tasks, [0, 1, BASE, 1])
    expected = alone(whole, batch)
    assert len({*expected}) > len(batch) // 2
    assert asked.answers(batch) == expected
    assert asked.answers(batch, stream=True) == expected


def test_what_is_kept_of_prompts_is_of_one_task(
    asked: Asked, whole: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    """The same prompts by the base, by each task, and by the base again."""
    samples = [task.test[i] for i in range(8) for task in tasks]
    for task in (BASE, 0, 1, 0, BASE):
        batch = [(sample, task) for sample in samples]
        assert asked.answers(batch) == alone(whole, batch), task


def test_a_stop_text_ends_an_answer_before_it(
    asked: Asked, whole: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    batch = [(sample, 0) for sample in tasks[0].test[:4]]
    for one, text in zip(batch, alone(whole, batch), strict=True):
        stop = text[len(text) // 2 :][:2]
        for stream in (False, True):
            (found,) = asked.answers([one], stream=stream, stop=(stop,))
            assert found == text.split(stop)[0].rstrip()


def test_several_answers_are_drawn_or_are_all_the_likeliest(
    asked: Asked, whole: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    sample = tasks[0].test[0]
    for stream in (False, True):
        drawn = asked.parts(sample, 0, Sampling(TOKENS, 2.0, seed=1, n=4), stream=stream)
        texts = {i: "".join(p.text for p in drawn if p.index == i) for i in range(4)}
        assert len({*texts.values()}) > 1
        assert sorted(p.index for p in drawn if p.finish) == [0, 1, 2, 3]
        alike = asked.parts(sample, 0, Sampling(TOKENS, n=3), stream=stream)
        texts = {i: "".join(p.text for p in alike if p.index == i) for i in range(3)}
        assert {*texts.values()} == {*alone(whole, [(sample, 0)])}


def test_chances_are_those_of_the_model_and_make_up_the_text(
    asked: Asked, whole: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    sample = tasks[0].test[0]
    expected: Any = whole.generate(
        collator().prompts([sample]),
        0,
        max_new_tokens=TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    ).sequences
    best = [row[0].log_softmax(-1).topk(3).values for row in expected.logits]
    for stream in (False, True):
        parts = asked.parts(sample, 0, Sampling(TOKENS, logprobs=3), stream=stream)
        found = [each for part in parts for each in part.logprobs]
        assert "".join(f.text for f in found).strip() == alone(whole, [(sample, 0)])[0]
        for each, row in zip(found, best, strict=False):
            assert each.logprob == pytest.approx(row[0].item(), abs=1e-3)
            assert [p for _, p in each.top] == pytest.approx(row.tolist(), abs=1e-3)
            assert each.bytes_.decode() == each.text


def test_an_answer_is_of_its_schema(asked: Asked, tasks: tuple[Task, ...]) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    sampling = Sampling(40, json_schema=json.dumps(schema))
    (part,) = asked.parts(tasks[0].test[0], 0, sampling)
    assert isinstance(json.loads(part.text)["yes"], bool), part
    bad = Sampling(40, json_schema=json.dumps({"type": "no such type"}))
    (part,) = asked.parts(tasks[0].test[0], 0, bad)
    assert part.refused
    assert part.failure


def test_a_penalty_on_what_was_said_changes_what_is_said(
    asked: Asked, tasks: tuple[Task, ...]
) -> None:
    sample = tasks[0].test[0]
    plain, *others = (
        asked.parts(sample, 0, Sampling(TOKENS, **more))[0].text
        for more in ({}, {"frequency_penalty": 2.0}, {"repetition_penalty": 1.9})
    )
    assert plain not in others
    only = asked.parts(sample, 0, Sampling(TOKENS, 2.0, seed=3, top_k=1))[0].text
    assert only == asked.parts(sample, 0, Sampling(TOKENS, 2.0, seed=3, min_p=1.0))[0].text == plain


def test_a_store_grows_up_to_the_capacity_and_is_refused_beyond(
    asked: Asked,
    growing: Store,
    whole: GrowingVLM,
    stores: dict[str, Store],
    tasks: tuple[Task, ...],
) -> None:
    growing.append(stores["front"].read(2))
    asked.grow(growing)
    batch = mixed(tasks, [0, 2, BASE, 1])
    assert asked.answers(batch) == alone(whole, batch)
    growing.append(replace(stores["front"].read(2), task="Another"))
    with pytest.raises(
        StoreError, match=r"'Another' isn't taken up.*4 tasks, .* 3; raise engine.vllm.capacity.ta"
    ):
        asked.grow(growing)
    assert asked.executor.tasks == TASKS
    assert asked.executor.stuck() is None
    assert asked.answers(batch) == alone(whole, batch)


def test_an_engine_that_answers_otherwise_does_not_come_up(
    tmp_path: Path, stores: dict[str, Store]
) -> None:
    """As one would with another base, or with experts that are read otherwise."""
    header, primitive = stores["front"].header, stores["front"].read(0)
    store = Store.create(
        tmp_path / "store", base=header.base, settings=header.settings, config=header.config
    )
    pictured, plain = primitive.references
    wrong = Reference(plain.tokens, (plain.logprobs[0] - 0.1, *plain.logprobs[1:]))
    store.append(replace(primitive, references=(pictured, wrong)))
    with pytest.raises(UnservedBaseError, match="'ScienceQA' isn't the one of when it was learned"):
        Asked(store, tasks=2)
