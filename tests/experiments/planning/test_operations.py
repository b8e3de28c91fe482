"""The plan's operations against those that torch and the methods count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_models import make_base, make_wide_base, make_wide_inputs
from torch.utils.flop_counter import FlopCounterMode

from cmoe.config.tree import RunConfig
from cmoe.data.settings import DataConfig
from cmoe.experiments.planning.operations import adapter_flops, operations
from cmoe.experiments.planning.sizes import shape_of, worst_growth
from cmoe.methods.cmoe import CMoE
from cmoe.methods.settings import ExpertsConfig, ProbeConfig
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import LocatorConfig

TASKS = ("ScienceQA", "TextVQA", "ImageNet")


def make_config(**changes: Any) -> RunConfig:
    parts: dict[str, Any] = {
        "data": DataConfig(tasks=TASKS),
        "experts": ExpertsConfig(rank=8),
    }
    return RunConfig("plan", **(parts | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gates": "residual"},
        {"gates": "softmax", "attention": 3},
        {"gates": "residual", "attention": 3, "build_on": "nearest"},
        {"gates": "renormalized", "attention": 3, "build_on": "nearest"},
    ],
    ids=str,
)
@pytest.mark.parametrize("top_k", [1, 2])
@torch.no_grad()
def test_what_a_task_adds_is_what_the_method_counts(top_k: int, changes: dict[str, Any]) -> None:
    """At worst each builds on the one before it."""
    experts = ExpertsConfig(rank=8, top_k=top_k, per_layer=1, **changes)
    config = make_config(experts=experts, probe=ProbeConfig(max_layers=2))
    method = CMoE(make_base(), config.experts, config.probe, LocatorConfig(), 0)
    shape = shape_of(method.module.base, attention=experts.attention > 0)
    growth = worst_growth(config, shape)
    for index, (task, grown) in enumerate(zip(TASKS, growth, strict=True)):
        builds_on = TASKS[index - 1] if index and experts.build_on == "nearest" else None
        method.module.grow(task, grown, rank=8, lora_alpha=8, seed=0, builds_on=builds_on)
        method.module.commit({})
        counted = adapter_flops(config, shape, growth[: index + 1])
        assert counted == method.flops_per_token(index)
    assert shape.flops == method.flops_per_token(BASE)


def test_a_samples_operations_are_those_that_torch_counts() -> None:
    """Forward, and backward through frozen weights, with attention, head and vision tower."""
    inputs = make_wide_inputs(batch=1, text=64)
    length = inputs["input_ids"].shape[1]
    config = make_config(data=DataConfig(tasks=TASKS[:1], max_length=length))
    base = make_wide_base()
    shape = shape_of(base)
    growth = worst_growth(config, shape)
    model = GrowingVLM(base)
    model.grow(TASKS[0], growth[0], rank=8, lora_alpha=8, seed=0)
    each = operations(config, shape, growth)
    # Torch counts the product that adds to a copy, but not the same one in place.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **kwargs: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as forward:
        out = model(inputs, TASKS[0])
    with FlopCounterMode(display=False, custom_mapping=in_place) as backward:
        out.loss.backward()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert each.forward == pytest.approx(forward.get_total_flops(), rel=0.1)
    # The embeddings take no gradient: below the first of these four layers nothing goes back.
    assert each.training == pytest.approx(both, rel=0.15)
    assert each.training > both
