"""CMoE's loss, what its answers and its learning cost, and settings that it refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.devices import DEVICE
from support.plain_trainer import PlainTrainer, make_batch
from support.tiny_cmoe import EXPERTS, PROBE, SAMPLES, answer_loss, learn, make_method
from support.tiny_models import LAYERS, make_base, make_inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cmoe.data.samples import Sample
from cmoe.methods.settings import ExpertsConfig
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.routers import BASE


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_is_the_answers_cross_entropy_and_the_weighted_balance(weight: float) -> None:
    method = make_method(replace(EXPERTS, balance_weight=weight, per_layer=3))
    _, trainer = learn(method, "one")
    samples = SAMPLES["one"][:4]
    inputs = make_batch(samples, answers=True)
    with torch.no_grad():
        balance = method.module(inputs, "one", record=True).balance_loss
        # The micro-batch may be part of a batch with other answers: 10 tokens in all.
        loss = trainer.losses["train"](method.module, inputs, 10.0)
    summed = answer_loss(method.module, "one", samples) * 8
    assert loss.item() == pytest.approx(summed / 10 + weight * balance.item(), rel=1e-5)
    assert balance.item() >= 0.99 * LAYERS, "by Switch's definition 1 at best, in every layer"


@torch.no_grad()
def test_operations_are_those_that_torch_counts() -> None:
    method = make_method(replace(EXPERTS, top_k=9, per_layer=2), replace(PROBE, alpha=0.0))
    with torch.enable_grad():
        for task in SAMPLES:
            learn(method, task)
    inputs = make_inputs()
    tokens = inputs["input_ids"].numel()

    def counted(task: int) -> int:
        # Torch counts the product that adds to a copy, but not the same one in place.
        in_place = {torch.ops.aten.addmm_: lambda _, a, b, **kwargs: 2 * a[0] * a[1] * b[1]}
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            method.module(inputs, task)
        return counter.get_total_flops()

    added = [(counted(task) - counted(BASE)) / tokens for task in range(3)]
    formula = [method.flops_per_token(task) for task in range(3)]
    assert min(added) > 0
    np.testing.assert_allclose(formula, added, rtol=0.01)

    decoder = make_base().get_decoder()
    with FlopCounterMode(display=False) as counter:
        decoder(inputs_embeds=torch.zeros(1, 10, decoder.config.hidden_size, device=DEVICE))
    products = counter.get_flop_counts()["Global"]
    linear = sum(n for op, n in products.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert method.flops_per_token(BASE) == pytest.approx(linear / 10, rel=0.01)


class Counting(PlainTrainer):
    """Counts the tokens of every phase."""

    def __init__(self, module: GrowingVLM) -> None:
        super().__init__(module, collate=self.counted)
        self.tokens: dict[str, int] = {}

    def counted(self, samples: Sequence[Sample], *, answers: bool) -> dict[str, Tensor]:
        inputs = make_batch(samples, answers=answers)
        phase = list(self.seen)[-1]
        self.tokens[phase] = self.tokens.get(phase, 0) + inputs["input_ids"].numel()
        return inputs


def test_operations_of_learning_are_those_that_torch_counts() -> None:
    """Of the decoder's linear maps, where what stands below them is trained, too."""
    method = make_method(replace(EXPERTS, top_k=9), replace(PROBE, alpha=None, experts=1))
    learn(method, "one")
    embeddings: Any = method.module.base.get_input_embeddings()
    embeddings.register_forward_hook(
        lambda _, args, out: out.requires_grad_() if torch.is_grad_enabled() else out
    )
    trainer = Counting(method.module)
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **kwargs: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        method.learn("two", SAMPLES["two"], trainer)
    assert trainer.tokens.keys() == {"probe", "measure", "loss gain", "train", "usage", "features"}
    at = re.compile(r".*language_model\.layers\.\d+")
    maps = torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_
    counts = counter.get_flop_counts()
    spent = sum(ops.get(op, 0) for name, ops in counts.items() if at.fullmatch(name) for op in maps)
    assert method.learning_flops(1, trainer.tokens) == pytest.approx(spent, rel=0.05)


def test_a_token_meets_top_k_experts_at_most() -> None:
    wide = make_method(replace(EXPERTS, top_k=1, per_layer=3), replace(PROBE, enabled=False))
    narrow = make_method(replace(EXPERTS, top_k=1, per_layer=1), replace(PROBE, enabled=False))
    for method in (wide, narrow):
        learn(method, "one")
    router_rows = 2 * 2 * wide.module.ffns[0].hidden_size * LAYERS  # two more experts a layer
    assert wide.flops_per_token(0) == narrow.flops_per_token(0) + router_rows


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"rank": 0}, "experts.rank is 0; at least 1"),
        ({"top_k": 0}, "experts.top_k is 0; at least 1"),
        ({"per_layer": 0}, "experts.per_layer is 0; at least 1"),
        ({"balance_weight": -1.0}, "experts.balance_weight is -1.0; at least 0"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        ExpertsConfig(**changes)
