"""However vLLM cuts, keeps and mixes prompts, each task's answers are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.vllm_bases import llava_of

pytest.importorskip("vllm", reason="the environment of the vLLM engine alone has it")

import vllm.v1.core.kv_cache_utils as kept
from support.vllm_engine import asked, by_generate, by_vllm, write_stream


@pytest.mark.parametrize(("tokens", "arrivals"), [(40, None), (512, 2), (40, 2)])
def test_prompts_are_read_in_pieces_and_as_they_come(
    tokens: int, arrivals: int | None, tmp_path: Path
) -> None:
    """A step reads no more than 40 tokens, of one prompt or of several; or two come before each."""
    model, store = write_stream(llava_of("llama"), tmp_path, "residual")
    questions = asked(tmp_path)
    found = by_vllm(
        tmp_path,
        store,
        questions,
        arrivals=arrivals,
        max_num_batched_tokens=tokens,
        enable_prefix_caching=False,
        disable_chunked_mm_input=False,
    )
    assert [answer.tokens for answer in found] == [by_generate(model, q) for q in questions]


@pytest.mark.parametrize("named", [True, False])
def test_what_is_kept_of_a_prompt_is_of_its_task(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the task in a block's name others' would be taken: the test can fail."""
    if not named:
        monkeypatch.setattr(kept, "_gen_lora_extra_hash_keys", lambda request: [])
    model, store = write_stream(llava_of("llama"), tmp_path, "residual")
    questions = asked(tmp_path)
    # A few at a time, so that prompts find what is kept of those before them.
    sorted_: list[Any] = sorted(questions, key=lambda question: (question.ids, question.task))
    found = by_vllm(tmp_path, store, sorted_, max_num_batched_tokens=64)
    expected = [by_generate(model, question) for question in sorted_]
    assert ([answer.tokens for answer in found] == expected) == named
