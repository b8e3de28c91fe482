"""Continuous batching gives what every request would get alone, whenever it joins and leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import pytest
import torch
from support.mini_store import MAX_NEW, collator, processor

from cmoe.data.samples import Sample
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.routers import BASE
from cmoe.serving.engines.builtin.scheduler import Job, Scheduler
from cmoe.serving.messages import AnswerPart, Sampling
from cmoe.serving.settings import EngineConfig


@pytest.fixture
def scheduler(model: GrowingVLM) -> Iterator[Callable[..., Scheduler]]:
    made: list[Scheduler] = []

    def make(**limits: Any) -> Scheduler:
        made.append(Scheduler(model, processor().tokenizer, EngineConfig(**limits)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def job(
    sample: Sample, task: int | None, tokens: int = MAX_NEW, *, stream: bool = False, **more: Any
) -> Job:
    return Job(dict(collator().prompts([sample])), task, Sampling(tokens, **more), stream)


def alone(model: GrowingVLM, one: Job) -> tuple[str, int]:
    """What the base's own `generate` says to a job, and by which task."""
    found = model.generate(
        one.prompt, one.task, max_new_tokens=one.sampling.max_tokens, do_sample=False
    )
    new = found.sequences[:, one.prompt["input_ids"].shape[1] :]
    (text,) = processor().tokenizer.batch_decode(new, skip_special_tokens=True)
    return text.strip(), found.tasks[0]


def answers(scheduler: Scheduler, jobs: list[Job]) -> list[list[AnswerPart]]:
    """All events of every job, which are submitted at once."""
    came: list[Queue[AnswerPart]] = [Queue() for _ in jobs]
    for one, queue in zip(jobs, came, strict=True):
        scheduler.submit(one, queue.put)
    return [finished(queue) for queue in came]


def finished(queue: Queue[AnswerPart]) -> list[AnswerPart]:
    events: list[AnswerPart] = []
    while not events or not (events[-1].finish or events[-1].failure):
        events.append(queue.get(timeout=60))
    return events


def said(events: list[AnswerPart]) -> str:
    return "".join(event.text for event in events)


def test_every_answer_is_that_of_its_request_alone(
    model: GrowingVLM, scheduler: Callable[..., Scheduler], samples: list[Sample]
) -> None:
    """Tasks named and located, every length, joining and leaving as places get free."""
    jobs = [
        job(s, None if n % 3 == 0 else n % 4 - 1, tokens=1 + n % MAX_NEW, stream=n % 2 == 0)
        for n, s in enumerate(samples)
    ]
    expected = [alone(model, one) for one in jobs]
    found = answers(scheduler(max_batch=7, join_at_once=3), jobs)
    assert [(said(events), events[-1].task) for events in found] == expected
    assert {events[-1].finish for events in found} == {"stop", "length"}
    assert len({events[-1].tokens for events in found}) > 4, "answers of many lengths"
    for one, events in zip(jobs, found, strict=True):
        assert (events[-1].location is not None) == (one.task is None)
        assert events[-1].tokens <= one.sampling.max_tokens


def test_a_long_answer_holds_no_one_up(
    scheduler: Callable[..., Scheduler], samples: list[Sample]
) -> None:
    """With two places a short request overtakes a long one that began before it."""
    made = scheduler(max_batch=2)
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
    scheduler: Callable[..., Scheduler], samples: list[Sample]
) -> None:
    jobs = [job(s, n % 3, tokens=2 + 5 * (n % 3)) for n, s in enumerate(samples)]
    limit = 3 * max(one.max_tokens for one in jobs)
    made = scheduler(max_tokens=limit)
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
        scheduler(max_tokens=50).submit(jobs[0], lambda _: None)


def test_prompts_that_come_while_others_run_are_read_together(
    scheduler: Callable[..., Scheduler], samples: list[Sample]
) -> None:
    made = scheduler(join_wait_s=0.5)
    sizes: list[int] = []
    join = made._batch.join

    def watched(prompts: Any, tasks: Any) -> Any:
        sizes.append(len(prompts))
        return join(prompts, tasks)

    made._batch.join = watched  # type: ignore[method-assign]
    first: Queue[AnswerPart] = Queue()
    made.submit(job(samples[0], 0, tokens=400, stream=True), first.put)
    first.get(timeout=60)
    came: list[Queue[AnswerPart]] = [Queue() for _ in range(4)]
    for sample, queue in zip(samples, came, strict=False):
        made.submit(job(sample, 1, tokens=2), queue.put)
        time.sleep(0.02)
    for queue in came:
        finished(queue)
    assert sizes == [1, 4]


def test_who_cancels_frees_a_place(
    scheduler: Callable[..., Scheduler], samples: list[Sample]
) -> None:
    made = scheduler(max_batch=1)
    first: Queue[AnswerPart] = Queue()
    cancel = made.submit(job(samples[0], 0, tokens=400, temperature=5.0, stream=True), first.put)
    first.get(timeout=60)
    waiting: Queue[AnswerPart] = Queue()
    never = made.submit(job(samples[1], 0), waiting.put)
    never()
    cancel()
    (events,) = answers(made, [job(samples[2], 0)])
    assert events[-1].finish
    assert waiting.empty()
    assert made.between(lambda: (made.running, made.waiting)).result() == (0, 0)


def test_drawn_answers_depend_on_their_seed_alone(
    scheduler: Callable[..., Scheduler], samples: list[Sample]
) -> None:
    def drawn(seed: int) -> Job:
        return job(samples[0], 1, temperature=1.5, top_p=0.9, seed=seed)

    made = scheduler()
    by_itself = [said(answers(made, [drawn(seed)])[0]) for seed in range(6)]
    together = answers(made, [drawn(seed) for seed in range(6)] + [job(s, 0) for s in samples])
    assert [said(events) for events in together[:6]] == by_itself
    assert len(set(by_itself)) > 1


def test_a_failing_prompt_fails_alone(
    model: GrowingVLM, scheduler: Callable[..., Scheduler], samples: list[Sample]
) -> None:
    made = scheduler(join_at_once=1)
    good = job(samples[0], 0)
    bad = Job(good.prompt | {"pixel_values": torch.zeros(1, 3, 7, 7)}, 0, Sampling(4))
    events = answers(made, [good, bad, good])
    assert [e[-1].failure is not None for e in events] == [False, True, False]
    assert said(events[0]) == said(events[2]) == alone(model, good)[0]
    assert made.failures == 0


def test_who_no_longer_waits_for_a_call_ends_nothing(scheduler: Callable[..., Scheduler]) -> None:
    made, go_on = scheduler(), threading.Event()
    made.between(go_on.wait)
    never = made.between(lambda: 1)
    assert never.cancel()
    go_on.set()
    assert made.between(lambda: 7).result(timeout=10) == 7


def test_a_stuck_pass_is_noticed(scheduler: Callable[..., Scheduler]) -> None:
    made = scheduler(stuck_s=0.05)
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
