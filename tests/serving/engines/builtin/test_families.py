"""Bases of every family: a batch answers what the base's own `generate` answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from queue import Queue
from threading import Event as Signal
from typing import Any

import pytest
import torch
from PIL import Image
from support.mini_store import processor
from support.serving_bases import SERVED, make_prompt, make_served
from support.vllm_bases import FAMILIES, write_base

from cmoe.data.batches import ChatTurn, Collator
from cmoe.data.padding import batched
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.routers import BASE
from cmoe.serving.engines.builtin.scheduler import Job, Scheduler
from cmoe.serving.messages import AnswerPart, Sampling
from cmoe.serving.prompts import to_arrays, to_tensors
from cmoe.serving.settings import EngineConfig

TOKENS = 10


def by_generate(model: GrowingVLM, one: Job) -> list[int]:
    """Tokens of a job's answer, alone, by the base's own `generate`"""
    found = model.generate(
        one.prompt, one.task, max_new_tokens=one.sampling.max_tokens, do_sample=False
    )
    return found.sequences[0, one.prompt["input_ids"].shape[1] :].tolist()


def by_scheduler(
    model: GrowingVLM, jobs: list[Job], tokenizer: Any = None, **limits: Any
) -> list[tuple[str, int]]:
    """Texts and numbers of tokens of answers that run together; the first join in their order."""
    tokenizer = tokenizer or processor().tokenizer
    scheduler, there = Scheduler(model, tokenizer, EngineConfig(**limits)), Signal()
    scheduler.between(there.wait)
    came: list[Queue[AnswerPart]] = [Queue() for _ in jobs]
    for one, queue in zip(jobs, came, strict=True):
        scheduler.submit(one, queue.put)
    there.set()
    events = [queue.get(timeout=60) for queue in came]
    scheduler.close()
    assert [e.failure for e in events] == [None] * len(jobs)
    return [(e.text, e.tokens) for e in events]


def read(tokens: list[int], ends: Sequence[int] = (2,)) -> tuple[str, int]:
    said = [token for token in tokens if token not in ends]  # an end is none of the text
    text: str = processor().tokenizer.decode(said, skip_special_tokens=True)
    return text.strip(), len(tokens)


@pytest.mark.parametrize("family", SERVED)
def test_a_batch_says_what_generate_says(family: str) -> None:
    """Rows with and without pictures, of several sizes and lengths, join and leave."""
    model = GrowingVLM(make_served(family))
    shapes = [(9, "small"), (4, ""), (14, ""), (5, "wide"), (3, "small"), (20, "wide")]
    jobs = [
        Job(make_prompt(family, length, seed, picture), BASE, Sampling(TOKENS - seed))
        for seed, (length, picture) in enumerate(shapes)
    ]
    expected = [by_generate(model, one) for one in jobs]
    assert len({tuple(tokens) for tokens in expected}) > 4
    found = by_scheduler(model, jobs, join_at_once=2, max_batch=4)
    assert found == [read(tokens) for tokens in expected]
    # Nor does padding change what a prompt is located by.
    prompts = [dict(one.prompt) for one in jobs]
    together = model.features(batched(prompts, pad=0))
    alone = torch.cat([model.features(prompt) for prompt in prompts])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_may_have_any_number_of_images(family: str, tmp_path: Path) -> None:
    write_base(FAMILIES[family], tmp_path)
    base, own = load_base(str(tmp_path))
    model, collator = GrowingVLM(base), Collator(own, 4096, 1)
    jobs = []
    for number, sizes in enumerate([[(40, 30), (64, 64)], [(30, 90)], [], [(96, 40)] * 3]):
        images = [Image.linear_gradient("L").resize(size).convert("RGB") for size in sizes]
        turn = ChatTurn("user", (*[None] * len(images), f"What is it{'?' * number}"))
        prompt = to_arrays(collator.conversation([turn], images))
        jobs.append(Job(to_tensors(prompt), BASE, Sampling(TOKENS)))
    found = by_scheduler(model, jobs, own.tokenizer, join_at_once=4, max_batch=4)
    ends, skipped = {base.generation_config.eos_token_id}, own.tokenizer.all_special_ids
    for (text, count), one in zip(found, jobs, strict=True):
        tokens = by_generate(model, one)
        said = own.tokenizer.decode([t for t in tokens if t not in ends], skip_special_tokens=True)
        assert (text, count) == (said.strip(), len(tokens))
        assert any(token not in skipped for token in tokens)


# What a base's own settings ask for


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"suppress_tokens": [*range(8, 30)]},
        {"begin_suppress_tokens": [*range(8, 40)]},
        {"no_repeat_ngram_size": 1},
        {"bad_words_ids": [[t] for t in range(30, 60)]},
        {"min_new_tokens": 4, "eos_token_id": [2, *range(8, 40)]},
        {"forced_eos_token_id": 40},
        {"do_sample": True, "temperature": 0.1, "top_k": 1, "repetition_penalty": 1.3},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_settings_of_generation_are_kept(settings: dict[str, Any]) -> None:
    """What `generation_config` asks of `generate`, and so of evaluation, a service does."""
    model = GrowingVLM(make_served("llava"))
    jobs = [
        Job(make_prompt("llava", 3 + seed, seed), BASE, Sampling(12 - seed)) for seed in range(4)
    ]
    before = [by_generate(model, one) for one in jobs]
    model.base.generation_config.update(**settings)
    expected = [by_generate(model, one) for one in jobs]
    assert expected != before, "the setting changes something"
    ends = settings.get("eos_token_id", [2])
    assert by_scheduler(model, jobs, join_at_once=2) == [read(tokens, ends) for tokens in expected]
