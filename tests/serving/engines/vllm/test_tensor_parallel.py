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
    "text", ["llama", "phi3"], ids=["several maps merged by vLLM", "one map of the base's own"]
)
def test_two_processes_answer_as_one_model(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of queries are shared out; that of keys, fewer than processes, lies on each."""
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[1]}")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    family = llava_of(text, num_key_value_heads=1)
    model, store = write_stream(family, tmp_path, "residual")
    questions = asked(tmp_path)
    found = by_vllm(
        tmp_path, store, questions, tensor_parallel_size=2, distributed_executor_backend="mp"
    )
    assert [answer.tokens for answer in found] == [by_generate(model, q) for q in questions]
