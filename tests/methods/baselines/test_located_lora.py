"""A LoRA for every task that is found by cmoe's locator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.plain_trainer import PlainTrainer
from support.rivals import (
    CONFIG,
    TASKS,
    alike,
    answers,
    assert_same,
    learn,
    make_method,
    samples_of,
)
from support.tiny_models import LAYERS, make_base, make_inputs

from cmoe.config.parse import parse_with
from cmoe.experiments.comparison.runs import of_method
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.methods.baselines.located_lora import LocatedLoRA
from cmoe.methods.cmoe import CMoE
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.settings import ExpertsConfig, ProbeConfig
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE, LocatorConfig
from cmoe.run.stream import make_method as make_configured

LOCATOR = LocatorConfig(
    layer=2, pooling="mean_text", hidden=8, latent=4, steps=5, batch_size=8, paraphrases=0
)


def test_a_located_adapter_is_the_told_ones_and_cmoes_locator_finds_it() -> None:
    told, located = make_method("per_task_lora"), LocatedLoRA(make_base(), CONFIG, LOCATOR, 0)
    cmoe = CMoE(make_base(), ExpertsConfig(rank=4), ProbeConfig(enabled=False), LOCATOR, 0)
    log = []
    for task in TASKS:
        primitive = located.learn(task, samples_of(task), PlainTrainer(located.module))
        wanted = learn(told, task)
        assert_same(replace(primitive, locator={}), wanted)
        theirs = cmoe.learn(task, samples_of(task), PlainTrainer(cmoe.module))
        for name, tensor in theirs.locator.items():
            torch.testing.assert_close(primitive.locator[name], tensor)
        log.append(primitive)
    inputs = make_inputs()
    again = LocatedLoRA(make_base(), CONFIG, LOCATOR, 0)
    again.append(*log)
    for method in (located, again):
        features = method.features(inputs)
        torch.testing.assert_close(features, cmoe.module.features(inputs))
        assert torch.equal(method.locate(features).scores, cmoe.locate(features).scores)
    assert alike(answers(again, 1), answers(told, 1))
    with pytest.raises(NotImplementedError):
        located.answerer(0, 0)


def test_an_adapter_of_the_ffns_leaves_attention_alone() -> None:
    base = make_base()
    method = SequentialLoRA(base, replace(CONFIG, maps="ffn"), 0)
    adapted = [n for n, m in method.module.named_modules() if hasattr(m, "lora_A")]
    assert len(adapted) == 3 * LAYERS
    assert all(".mlp." in name for name in adapted)


def test_a_comparison_has_both_at_about_as_many_parameters() -> None:
    """And alike in all else."""
    config, parts = parse_with({"": CompareConfig}, ["--config", "rivals_mini"])
    how, added, runs = parts[""], {}, {}
    for name in ("located_lora", "located_lora_ffn"):
        assert name in how.names
        runs[name] = of_method(config, how.method_of(name), how.settings_of(name), name, seed=0)
        method = make_configured(runs[name], load_base(MINI_BASE)[0])
        added[name] = sum(p.numel() for p in method.trained().values())
    assert added["located_lora_ffn"] == pytest.approx(added["located_lora"], rel=0.05)
    one, other = (replace(run, name="x", lora=CONFIG) for run in runs.values())
    assert one == other
