"""Counts on the meta device are those of models that have really grown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.tiny_models import CONFIGS, make_base
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
)

from cmoe.config.tree import RunConfig
from cmoe.data.settings import DataConfig
from cmoe.experiments.planning.sizes import added, most_trained, shape_of, worst_growth
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.settings import ExpertsConfig, LoRAConfig, ProbeConfig
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.settings import LocatorConfig

TASKS = ("ScienceQA", "TextVQA", "ImageNet")
LOCATOR = LocatorConfig(hidden=16, latent=4, steps=2, batch_size=4)


def make_config(**changes: Any) -> RunConfig:
    parts = {
        "data": DataConfig(tasks=TASKS),
        "experts": ExpertsConfig(rank=8, per_layer=2),
        "probe": ProbeConfig(),
        "locator": LOCATOR,
    }
    return RunConfig("plan", **(parts | changes))


def on_meta(family: str) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(CONFIGS[family][0]())


def test_llava_1_5_has_the_published_parameters() -> None:
    """llava-hf/llava-1.5-7b-hf: 7,063,427,072, as its card and its files say."""
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
    )
    with torch.device("meta"):
        shape = shape_of(AutoModelForImageTextToText.from_config(config))
    assert shape.decoder + shape.vision == 7_063_427_072
    # Llama 2 has 6,738,415,616 parameters with 32,000 tokens: 64 more, in and out.
    assert shape.decoder == 6_738_415_616 + 2 * 64 * 4096
    assert shape.image_tokens == (336 // 14) ** 2


@pytest.mark.parametrize("family", CONFIGS)
def test_a_bases_parts_are_those_of_the_model_with_weights(family: str) -> None:
    shape, base = shape_of(on_meta(family)), make_base(family)
    assert shape == shape_of(base)
    decoder = {id(p): p.numel() for p in base.get_decoder().parameters()}
    decoder |= {id(p): p.numel() for p in base.get_output_embeddings().parameters()}
    # LLaVA-NeXT has a parameter between its parts, which is sharded with the decoder.
    decoder |= {id(p): p.numel() for p in base.model.parameters(recurse=False)}
    assert shape.decoder == sum(decoder.values())
    assert shape.vision == sum(p.numel() for p in base.parameters() if id(p) not in decoder) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"probe": ProbeConfig(enabled=False)},
        {"probe": ProbeConfig(count="per_probe", experts=3)},
        {"probe": ProbeConfig(max_layers=2)},
        {"probe": ProbeConfig(max_layers=0)},
        {"probe": ProbeConfig(max_added_parameters=0)},
        {"probe": ProbeConfig(max_added_parameters=12_000)},
        {"experts": ExpertsConfig(rank=8, lora_alpha=8, per_layer=2, attention=5)},
        {
            "experts": ExpertsConfig(rank=8, lora_alpha=8, per_layer=2, attention=5),
            "probe": ProbeConfig(max_added_parameters=12_000),
        },
        {"locator": replace(LOCATOR, score="mahalanobis")},
        {"locator": replace(LOCATOR, score="raw", hidden=5, latent=3)},
    ],
    ids=str,
)
def test_the_tasks_add_what_a_real_model_commits(changes: dict[str, Any]) -> None:
    config = make_config(**changes)
    attention = config.experts.attention
    shape = shape_of(on_meta("llava"), attention=attention > 0)
    growth = worst_growth(config, shape)
    planned = added(config, shape, growth)
    model = GrowingVLM(make_base("llava"), attention=attention, locator=config.locator)
    most = 0
    for index, (task, grown) in enumerate(zip(TASKS, growth, strict=True)):
        if index and config.probe.enabled:
            every = dict.fromkeys(range(shape.layers), config.probe.experts)
            probes = model.grow(task, every, rank=8, lora_alpha=8, seed=0)
            most = max(most, sum(p.numel() for p in probes))
            model.discard()
        trained = sum(p.numel() for p in model.grow(task, grown, rank=8, lora_alpha=8, seed=0))
        assert planned[index].trained == trained
        most = max(most, trained)
        features = torch.randn(12, shape.width)
        primitive = model.commit(model.bank.fit(features, seed=0))
        assert vars(planned[index]) == primitive.parameter_counts()
    assert most_trained(config, shape, growth) == most


def test_budgets_cut_what_later_tasks_grow() -> None:
    shape = shape_of(on_meta("llava"))
    every = dict.fromkeys(range(shape.layers), 2)
    cost = 2 * (8 * 3 * (32 + 48) + 32)  # two experts and their router rows, in one layer
    for budget, layers in ((2 * cost, 2), (2 * cost - 1, 1), (None, shape.layers)):
        config = make_config(probe=ProbeConfig(max_added_parameters=budget))
        first, *later = worst_growth(config, shape)
        assert first == every
        assert [len(grown) for grown in later] == [layers] * 2


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_sequential_lora_has_one_adapter(family: str) -> None:
    config = make_config(method="lora", lora=LoRAConfig(rank=4))
    shape = shape_of(on_meta(family))
    growth = worst_growth(config, shape)
    method = SequentialLoRA(make_base(family), config.lora, seed=0)
    adapter = sum(p.numel() for p in method.module.parameters() if p.requires_grad)
    assert [task.trained for task in added(config, shape, growth)] == [adapter] * len(TASKS)
    assert most_trained(config, shape, growth) == adapter
