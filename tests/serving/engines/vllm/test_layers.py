"""What vLLM's own decoder can't carry is refused, not left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.grown import STREAM, learn
from support.tiny_models import make_base

pytest.importorskip("vllm", reason="the environment of the vLLM engine alone has it")

from cmoe.modeling.base import FFN_NAMES
from cmoe.modeling.growing import GrowingVLM
from cmoe.serving.engines.vllm.layers import find_layers, find_part
from cmoe.serving.engines.vllm.worker import _Layer


def test_a_decoder_that_vllm_borrows_of_transformers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no decoder of its own .* LlamaDecoderLayer"):
        find_layers(make_base().get_decoder())
    with pytest.raises(ValueError, match="no list of layers; looked for layers, h, blocks"):
        find_layers(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"layer 3 .* mlp, feed_forward, ffn; found 0 \(ReLU\)"):
        find_part(torch.nn.Sequential(torch.nn.ReLU()), 3, FFN_NAMES)


def test_a_tensor_without_a_place_is_refused() -> None:
    model = GrowingVLM(make_base(), attention=3)
    log = [learn(model, task) for task in STREAM]
    routed: Any = SimpleNamespace(layer=2)

    def linears(*names: str) -> Any:
        return {name: SimpleNamespace(names=[name]) for name in names}

    ffn, attention = ("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
    whole = _Layer(routed, linears(*ffn, "down_proj"), None, linears(*attention))
    whole.require_places(log)
    for lacking, lost in (
        (_Layer(routed, linears(*ffn), None, linears(*attention)), r"2.down_proj.A of .*'first'"),
        (_Layer(routed, linears(*ffn, "down_proj"), None, {}), r"2.attention.k_proj.A"),
    ):
        with pytest.raises(ValueError, match=f"layers.{lost}.* has no place in vLLM's layer"):
            lacking.require_places(log)
