"""Every family of bases that is served: vLLM with experts answers as the base's own `generate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.vllm_bases import FAMILIES, TEXTS, Family, llava_of

pytest.importorskip("vllm", reason="the environment of the vLLM engine alone has it")

from support.vllm_engine import asked, by_generate, by_vllm, write_stream

CASES = [
    *(
        (name, gates)
        for name in FAMILIES
        if name != "gemma3"
        for gates in ("residual", "renormalized")
    ),
    *((f"llava of {text}", "residual") for text in TEXTS),
]


def family_of(name: str) -> Family:
    return llava_of(name.removeprefix("llava of ")) if " of " in name else FAMILIES[name]


@pytest.mark.parametrize(("name", "gates"), CASES)
def test_tokens_are_those_of_generate(name: str, gates: str, tmp_path: Path) -> None:
    """24 answers of several tasks and the base, that run together, with and without pictures."""
    if name == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor needs it")
    model, store = write_stream(family_of(name), tmp_path, gates)
    questions = asked(tmp_path, 1 if name == "llava_onevision" else 2)
    expected = [by_generate(model, question) for question in questions]
    assert len({*map(tuple, expected)}) > 20, "tasks and pictures change the answers"
    found = by_vllm(tmp_path, store, questions)
    assert [answer.prompt for answer in found] == [question.ids for question in questions]
    assert [answer.tokens for answer in found] == expected
