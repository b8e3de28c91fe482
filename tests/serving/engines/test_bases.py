"""Whatever base is served says what its own `generate` says, or is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from queue import Queue
from threading import Event as Signal
from typing import Any

import pytest
import torch
from cmoe.serving.engines.builtin.engine import Engine, Event, Job
from cmoe.serving.engines.builtin.store_follower import follow
from support.mini_store import make_model, processor
from support.serving_bases import (
    SERVED,
    lfm2_vl,
    longrope,
    make_prompt,
    make_served,
    mllama,
    qwen3_5,
)
from transformers import Gemma3nConfig, T5GemmaConfig

from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import ModelConfig
from cmoe.serving import launch
from cmoe.serving.engines.builtin.batch import joined
from cmoe.serving.engines.builtin.decoding import Decoding, UnservedBaseError, require_servable
from cmoe.serving.launch import Service, ServiceError, serving
from cmoe.serving.settings import EngineConfig, ServeConfig
from cmoe.store.model import create_store

TOKENS = 10


def by_generate(model: GrowingVLM, one: Job) -> list[int]:
    """Tokens of a job's answer, alone, by the base's own `generate`"""
    found = model.generate(one.prompt, one.task, max_new_tokens=one.max_new_tokens, do_sample=False)
    return found.sequences[0, one.prompt["input_ids"].shape[1] :].tolist()


def by_engine(model: GrowingVLM, jobs: list[Job], **limits: Any) -> list[tuple[str, int]]:
    """Texts and numbers of tokens of answers that run together; the first join in their order."""
    engine, there = Engine(model, processor().tokenizer, EngineConfig(**limits)), Signal()
    engine.between(there.wait)
    came: list[Queue[Event]] = [Queue() for _ in jobs]
    for one, queue in zip(jobs, came, strict=True):
        engine.submit(one, queue.put)
    there.set()
    events = [queue.get(timeout=60) for queue in came]
    engine.close()
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
        Job(make_prompt(family, length, seed, picture), BASE, TOKENS - seed)
        for seed, (length, picture) in enumerate(shapes)
    ]
    expected = [by_generate(model, one) for one in jobs]
    assert len({tuple(tokens) for tokens in expected}) > 4
    found = by_engine(model, jobs, join_at_once=2, max_batch=4)
    assert found == [read(tokens) for tokens in expected]
    # Nor does padding change what a prompt is located by.
    prompts = [dict(one.prompt) for one in jobs]
    together = model.features(joined(prompts, pad=0))
    alone = torch.cat([model.features(prompt) for prompt in prompts])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        (qwen3_5, "'qwen3_5' can't be served: it has layers of linear_attention"),
        (lfm2_vl, "'lfm2_vl' can't be served: it has layers of conv"),
        (mllama, "'mllama' can't be served: it has layers of cross-attention"),
        (longrope, "'llava' can't be served: its rotary frequencies"),
        (Gemma3nConfig, "'gemma3n' can't be served: it has layers of other layers' keys"),
        (T5GemmaConfig, "'t5gemma' can't be served: it is an encoder with a decoder"),
    ],
)
def test_what_no_batch_can_hold_is_refused_by_name(config: Any, cause: str) -> None:
    with pytest.raises(UnservedBaseError, match=cause):
        require_servable(config())


def test_a_service_refuses_such_a_base_before_it_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Ray starts, where the base is known; and in each replica."""
    store = create_store(tmp_path / "store", make_model(), name="m", revision="main", config={})
    qwen3_5().save_pretrained(tmp_path / "base")
    served = ServeConfig(store.url, model=ModelConfig(str(tmp_path / "base")))
    with pytest.raises(UnservedBaseError, match="linear_attention"):
        follow(served)
    service = Service(served, {"host": "127.0.0.1", "port": 1}, None, "HeadOnly", {}, "cmoe", "/")
    monkeypatch.setattr(launch, "_require_port", lambda *_: pytest.fail("Ray is about to start"))
    with pytest.raises(ServiceError, match="'qwen3_5' can't be served: it has"), serving(service):
        pass


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
    jobs = [Job(make_prompt("llava", 3 + seed, seed), BASE, 12 - seed) for seed in range(4)]
    before = [by_generate(model, one) for one in jobs]
    model.base.generation_config.update(**settings)
    expected = [by_generate(model, one) for one in jobs]
    assert expected != before, "the setting changes something"
    ends = settings.get("eos_token_id", [2])
    assert by_engine(model, jobs, join_at_once=2) == [read(tokens, ends) for tokens in expected]


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"num_beams": 3}, "asks for beam_search"),
        ({"guidance_scale": 1.5}, "asks for guidance_scale"),
        ({"max_time": 1.0}, "asks for MaxTimeCriteria"),
        ({"stop_strings": ["."]}, "stop strings"),
        ({"prompt_lookup_num_tokens": 3}, "asks for assisted_generation"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_no_batch_can_keep_are_refused(settings: Any, cause: str) -> None:
    base = make_served("llava")
    base.generation_config.update(**settings)
    with pytest.raises(UnservedBaseError, match=f"'llava' can't be served.*{cause}"):
        Decoding(base)
