"""vLLM's tensor parallelism: each process has its share of every expert."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.vllm_bases import llava_of

pytest.importorskip("vllm", reason="the environment of the vLLM engine alone has it")

from support.vllm_engine import asked, by_generate, by_vllm, write_stream

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="vLLM gives each process a core of its own"
)


@pytest.mark.parametrize(
    ("text", "keys"),
    [("llama", 4), ("llama", 1), ("phi3", 1)],
    ids=["shared", "repeated", "one map of queries, keys and values"],
)
def test_two_processes_answer_as_one_model(
    text: str, keys: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of keys that are fewer than processes lie on each of them."""
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[1]}")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    family = llava_of(text, num_key_value_heads=keys)
    model, store = write_stream(family, tmp_path, "residual")
    questions = asked(tmp_path)
    found = by_vllm(
        tmp_path, store, questions, tensor_parallel_size=2, distributed_executor_backend="mp"
    )
    assert [answer.tokens for answer in found] == [by_generate(model, q) for q in questions]
