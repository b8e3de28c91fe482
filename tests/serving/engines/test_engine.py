"""Continuous batching gives what every request would get alone, whenever it joins and leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import pytest
import torch
from cmoe.serving.engines.builtin.engine import Engine, Event, Job, Text
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mini_store import MAX_NEW, collator, make_data, make_model, make_store, processor

from cmoe.data.samples import Sample, Task
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import MINI_BASE
from cmoe.serving.engines.builtin import batch, verification
from cmoe.serving.engines.builtin.batch import Batch, Choice, draw, joined
from cmoe.serving.engines.builtin.decoding import UnservedBaseError
from cmoe.serving.engines.builtin.verification import require_own_answers
from cmoe.serving.settings import EngineConfig
from cmoe.store.log import Store
from cmoe.store.model import load_model


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, ...]:
    return make_data(tmp_path_factory.mktemp("data") / "coin")


@pytest.fixture(scope="module", params=["front", "inline"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tasks: Any
) -> GrowingVLM:
    folder = tmp_path_factory.mktemp("stores") / request.param
    make_store(folder, tasks, request.param)
    return load_model(Store.open(folder), load_base(MINI_BASE)[0])


@pytest.fixture(scope="module")
def samples(tasks: tuple[Task, ...]) -> list[Sample]:
    """Of all tasks, mixed."""
    return [task.test[i] for i in range(12) for task in tasks]


@pytest.fixture
def engine(model: GrowingVLM) -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(**limits: Any) -> Engine:
        made.append(Engine(model, processor().tokenizer, EngineConfig(**limits)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def job(sample: Sample, task: int | None, tokens: int = MAX_NEW, **more: Any) -> Job:
    return Job(dict(collator().prompts([sample])), task, tokens, **more)


def alone(model: GrowingVLM, one: Job) -> tuple[str, int]:
    """What the base's own `generate` says to a job, and by which task."""
    found = model.generate(one.prompt, one.task, max_new_tokens=one.max_new_tokens, do_sample=False)
    new = found.sequences[:, one.prompt["input_ids"].shape[1] :]
    (text,) = processor().tokenizer.batch_decode(new, skip_special_tokens=True)
    return text.strip(), found.tasks[0]


def answers(engine: Engine, jobs: list[Job]) -> list[list[Event]]:
    """All events of every job, which are submitted at once."""
    came: list[Queue[Event]] = [Queue() for _ in jobs]
    for one, queue in zip(jobs, came, strict=True):
        engine.submit(one, queue.put)
    return [finished(queue) for queue in came]


def finished(queue: Queue[Event]) -> list[Event]:
    events: list[Event] = []
    while not events or not (events[-1].finish or events[-1].failure):
        events.append(queue.get(timeout=60))
    return events


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def test_every_answer_is_that_of_its_request_alone(
    model: GrowingVLM, engine: Callable[..., Engine], samples: list[Sample]
) -> None:
    """Tasks named and located, every length, joining and leaving as places get free."""
    jobs = [
        job(s, None if n % 3 == 0 else n % 4 - 1, tokens=1 + n % MAX_NEW, stream=n % 2 == 0)
        for n, s in enumerate(samples)
    ]
    expected = [alone(model, one) for one in jobs]
    found = answers(engine(max_batch=7, join_at_once=3), jobs)
    assert [(said(events), events[-1].task) for events in found] == expected
    assert {events[-1].finish for events in found} == {"stop", "length"}
    assert len({events[-1].tokens for events in found}) > 4, "answers of many lengths"
    for one, events in zip(jobs, found, strict=True):
        assert (events[-1].scores is not None) == (one.task is None)
        assert events[-1].tokens <= one.max_new_tokens


def test_a_long_answer_holds_no_one_up(
    engine: Callable[..., Engine], samples: list[Sample]
) -> None:
    """With two places a short request overtakes a long one that began before it."""
    made = engine(max_batch=2)
    long, ended = Queue(), []
    patient = job(samples[0], 0, tokens=400, temperature=5.0, seed=1, stream=True)
    made.submit(patient, long.put)
    long.get(timeout=60)
    for sample in samples[1:5]:
        (events,) = answers(made, [job(sample, BASE, tokens=2)])
        ended.append(events[-1])
    assert all(e.finish for e in ended)
    assert made.between(lambda: made.running).result() == 1, "the long one still runs"


def test_the_cache_is_never_larger_than_it_may_be(
    engine: Callable[..., Engine], samples: list[Sample]
) -> None:
    jobs = [job(s, n % 3, tokens=2 + 5 * (n % 3)) for n, s in enumerate(samples)]
    limit = 3 * max(one.tokens for one in jobs)
    made = engine(max_tokens=limit)
    widest: list[int] = []
    step = made._batch.step

    def watched(tokens: Any) -> Any:
        logits = step(tokens)
        widest.append(made._batch._mask.numel())
        return logits

    made._batch.step = watched  # type: ignore[method-assign]
    assert all(events[-1].finish for events in answers(made, jobs))
    assert max(widest) <= limit
    with pytest.raises(ValueError, match=r"holds 50 \(engine.max_tokens\)"):
        engine(max_tokens=50).submit(jobs[0], lambda _: None)


def test_prompts_that_come_while_others_run_are_read_together(
    engine: Callable[..., Engine], samples: list[Sample]
) -> None:
    made = engine(join_wait_s=0.5)
    sizes: list[int] = []
    join = made._batch.join

    def watched(prompts: Any, tasks: Any) -> Any:
        sizes.append(len(prompts))
        return join(prompts, tasks)

    made._batch.join = watched  # type: ignore[method-assign]
    first: Queue[Event] = Queue()
    made.submit(job(samples[0], 0, tokens=400, stream=True), first.put)
    first.get(timeout=60)
    came: list[Queue[Event]] = [Queue() for _ in range(4)]
    for sample, queue in zip(samples, came, strict=False):
        made.submit(job(sample, 1, tokens=2), queue.put)
        time.sleep(0.02)
    for queue in came:
        finished(queue)
    assert sizes == [1, 4]


def test_who_cancels_frees_a_place(engine: Callable[..., Engine], samples: list[Sample]) -> None:
    made = engine(max_batch=1)
    first: Queue[Event] = Queue()
    cancel = made.submit(job(samples[0], 0, tokens=400, temperature=5.0, stream=True), first.put)
    first.get(timeout=60)
    waiting: Queue[Event] = Queue()
    never = made.submit(job(samples[1], 0), waiting.put)
    never()
    cancel()
    (events,) = answers(made, [job(samples[2], 0)])
    assert events[-1].finish
    assert waiting.empty()
    assert made.between(lambda: (made.running, made.waiting)).result() == (0, 0)


def test_drawn_answers_depend_on_their_seed_alone(
    engine: Callable[..., Engine], samples: list[Sample]
) -> None:
    def drawn(seed: int) -> Job:
        return job(samples[0], 1, temperature=1.5, top_p=0.9, seed=seed)

    made = engine()
    by_itself = [said(answers(made, [drawn(seed)])[0]) for seed in range(6)]
    together = answers(made, [drawn(seed) for seed in range(6)] + [job(s, 0) for s in samples])
    assert [said(events) for events in together[:6]] == by_itself
    assert len(set(by_itself)) > 1


def test_a_failing_prompt_fails_alone(
    model: GrowingVLM, engine: Callable[..., Engine], samples: list[Sample]
) -> None:
    made = engine(join_at_once=1)
    good = job(samples[0], 0)
    bad = Job(good.prompt | {"pixel_values": torch.zeros(1, 3, 7, 7)}, 0, 4)
    events = answers(made, [good, bad, good])
    assert [e[-1].failure is not None for e in events] == [False, True, False]
    assert said(events[0]) == said(events[2]) == alone(model, good)[0]
    assert made.failures == 0


def test_who_no_longer_waits_for_a_call_ends_nothing(engine: Callable[..., Engine]) -> None:
    made, go_on = engine(), threading.Event()
    made.between(go_on.wait)
    never = made.between(lambda: 1)
    assert never.cancel()
    go_on.set()
    assert made.between(lambda: 7).result(timeout=10) == 7


def test_a_stuck_pass_is_noticed(engine: Callable[..., Engine]) -> None:
    made = engine(stuck_s=0.05)
    assert made.stuck() is None
    go_on = threading.Event()
    made.between(go_on.wait)
    time.sleep(0.2)
    assert (made.stuck() or 0) > 0.05
    go_on.set()
    assert made.between(lambda: 7).result(timeout=10) == 7
    with pytest.raises(ZeroDivisionError):
        made.between(lambda: 1 / 0).result(timeout=10)
    assert made.stuck() is None


# Verification


def test_a_base_that_answers_as_by_itself_is_served(model: GrowingVLM) -> None:
    require_own_answers(model, processor(), 512)


def test_rounding_is_no_other_answer() -> None:
    """In 16 bits, as on a GPU, what is padded and what isn't are apart by a few hundredths."""
    model = make_model()
    model.base.bfloat16()
    require_own_answers(model, processor(), 512)


def test_a_base_that_answers_otherwise_in_a_batch_is_refused(
    model: GrowingVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other positions, a cache cut wrongly, a setting forgotten, a base that isn't made for it."""

    def fails(*_: Any) -> Any:
        raise IndexError("list index out of range")

    count = batch.positions_of
    for name, wrong, cause in (
        (
            "positions_of",
            lambda *given: count(*given) * 2,
            "token 1 of the answer to a prompt with",
        ),
        ("_long", lambda states, n: states[:, :, :1].repeat(1, 1, n, 1), "token 3 of the answer"),
        ("positions_of", fails, "in a batch it fails with IndexError"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(batch, name, wrong)
            with pytest.raises(UnservedBaseError, match=cause) as found:
                require_own_answers(model, processor(), 512)
        assert str(found.value).startswith("a base of type 'llava' can't be served: ")
    monkeypatch.setattr(model.base.generation_config, "repetition_penalty", 1.5)
    require_own_answers(model, processor(), 512)
    monkeypatch.setattr(verification, "scores_of", lambda logits, rows: logits.float())
    with pytest.raises(UnservedBaseError, match="token 1 of the answer"):
        require_own_answers(model, processor(), 512)


# Text


@given(st.lists(st.integers(0, 1535), max_size=40), st.booleans())
@settings(deadline=None)
def test_parts_of_a_text_are_the_text(ids: list[int], every: bool) -> None:
    tokenizer = processor().tokenizer
    text, parts = Text(tokenizer, ()), []
    for token in ids:
        assert not text.add(token)
        if every or token % 3 == 0:
            parts.append(text.part(final=False))
    parts.append(text.part(final=True))
    assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=True).strip()


@given(st.text("ab ", max_size=30), st.lists(st.text("ab", min_size=1, max_size=3), max_size=2))
@settings(deadline=None)
def test_an_answer_ends_before_a_stop_text(answer: str, stop: list[str]) -> None:
    """However its tokens lie, no part ever says what is taken back."""
    tokenizer = processor().tokenizer
    ids = tokenizer(answer, add_special_tokens=False).input_ids
    plain = tokenizer.decode(ids).lstrip()
    text, parts = Text(tokenizer, stop), []
    for token in ids:
        stopped = text.add(token)
        parts.append(text.part(final=stopped))
        if stopped:
            break
    parts.append(text.part(final=True))
    cut = min((plain.find(s) for s in stop if s in plain), default=len(plain))
    assert "".join(parts) == plain[:cut].rstrip()


# Tokens


def test_a_row_draws_by_its_own_chances() -> None:
    """At temperature t a token has the chance softmax(logits / t), cut at top_p."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    even = [(i + 0.5) / 4000 for i in range(4000)]
    for warmth, top_p in ((1.0, 1.0), (2.0, 1.0), (1.0, 0.7)):
        numbers = iter(even)
        choice = Choice(warmth, top_p, lambda numbers=numbers: next(numbers))
        counts = torch.zeros(4)
        for _ in even:
            counts[draw(logits, [choice])[0]] += 1
        expected = (logits[0] / warmth).softmax(0)
        if top_p < 1:  # 0.64 and 0.24 come to more than 0.7
            expected = expected * torch.tensor([0.0, 1.0, 1.0, 0.0])
            expected = expected / expected.sum()
        torch.testing.assert_close(counts / len(even), expected, atol=2e-3, rtol=0)
    assert draw(logits, [Choice(0.0, 1.0, lambda: 0.0)]) == [2]
    assert draw(logits, [Choice(2.0, 0.0, lambda: 0.99)]) == [2], "none but the likeliest"


def test_padding_goes_when_the_longest_leaves(model: GrowingVLM, samples: list[Sample]) -> None:
    prompts = sorted(
        (dict(collator().prompts([s])) for s in samples), key=lambda p: p["input_ids"].shape[1]
    )
    rows = Batch(model, pad=0)
    rows.join([prompts[-1]], [0])
    rows.join([prompts[0]], [1])
    assert rows._mask.shape[1] == prompts[-1]["input_ids"].shape[1]
    rows.keep([1])
    assert rows._mask.shape == prompts[0]["input_ids"].shape
    assert bool(rows._mask.all())
    rows.keep([])
    assert len(rows) == 0


def test_joined_prompts_are_those_of_the_processor(samples: list[Sample]) -> None:
    whole = collator().prompts(samples[:5])
    made = joined([collator().prompts([s]) for s in samples[:5]], pad=0)
    assert made.keys() == whole.keys()
    assert all(torch.equal(made[name], whole[name]) for name in whole)
