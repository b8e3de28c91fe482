"""What holds for every method: all of it is on one device, and its base drops nothing out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.plain_trainer import PlainTrainer, make_samples
from support.pretended import Pretended
from support.tiny_models import llava, make_base, make_inputs

from cmoe.methods.baselines.ewc import EWC
from cmoe.methods.baselines.hide_llava import HiDeLLaVA
from cmoe.methods.baselines.located_lora import LocatedLoRA
from cmoe.methods.baselines.lwf import LwF
from cmoe.methods.baselines.moelora import MoELoRA
from cmoe.methods.baselines.multitask import JointLoRA
from cmoe.methods.baselines.olora import OLoRA
from cmoe.methods.baselines.per_task_lora import PerTaskLoRA
from cmoe.methods.baselines.replay import Replay
from cmoe.methods.cmoe import CMoE
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.settings import (
    EWCConfig,
    ExpertsConfig,
    HiDeConfig,
    LoRAConfig,
    LwFConfig,
    MoELoRAConfig,
    OLoRAConfig,
    ProbeConfig,
    ReplayConfig,
)
from cmoe.modeling.settings import LocatorConfig

LORA = LoRAConfig(rank=2, lora_alpha=4)
LOCATOR = LocatorConfig(layer=1, score="mahalanobis")
TASKS = {"one": make_samples(16), "two": make_samples(16, 100)}
METHODS: dict[str, Callable[[Any], Any]] = {
    "cmoe": lambda base: CMoE(
        base, ExpertsConfig(rank=8), ProbeConfig(steps=1, fraction=0.25), LOCATOR, 0
    ),
    "ewc": lambda base: EWC(base, LORA, EWCConfig(samples=2), 0),
    "lora": lambda base: SequentialLoRA(base, LORA, 0),
    "lwf": lambda base: LwF(base, LORA, LwFConfig(), 0),
    "moelora": lambda base: MoELoRA(base, MoELoRAConfig(2, 2, 4), 0),
    "olora": lambda base: OLoRA(base, LORA, OLoRAConfig(), 0),
    "hide_llava": lambda base: HiDeLLaVA(base, LORA, HiDeConfig(), 0),
    "replay": lambda base: Replay(base, LORA, ReplayConfig(4), 0),
    "multitask": lambda base: JointLoRA(base, LORA, 0),
    "per_task_lora": lambda base: PerTaskLoRA(base, LORA, 0),
    "located_lora": lambda base: LocatedLoRA(base, LORA, LOCATOR, 0),
}


@pytest.mark.parametrize("name", METHODS)
def test_two_tasks_are_learned_and_read_again_there(name: str) -> None:
    with Pretended():
        method, again = (METHODS[name](make_base().to("cuda")) for _ in range(2))
        primitives = [
            method.learn(task, samples, PlainTrainer(method.module, steps=1, earlier=TASKS))
            for task, samples in TASKS.items()
        ]
        for primitive in primitives:
            for tensors in primitive.parts().values():
                assert {t.device.type for t in tensors.values()} <= {"cpu"}
        again.append(*primitives)
        inputs = {name: tensor.to("cuda") for name, tensor in make_inputs().items()}
        answers = [
            m.generate(inputs, 1, max_new_tokens=2, do_sample=False) for m in (method, again)
        ]
        assert answers[0].device.type == "cuda"
        assert torch.equal(*answers)
        if method.locates:
            assert torch.equal(*(m.locate(m.features(inputs)).tasks for m in (method, again)))


@pytest.mark.parametrize("name", METHODS)
def test_a_base_with_dropout_is_learned_on_as_one_without(name: str) -> None:
    """Whatever passes a method makes: of probes, importances, a teacher, features."""

    def learned(dropout: float, training: bool) -> list[torch.Tensor]:
        config = llava()
        config.text_config.attention_dropout = config.vision_config.attention_dropout = dropout
        method = METHODS[name](make_base(config=config).train(training))
        for task, samples in TASKS.items():
            trainer = PlainTrainer(method.module, steps=2, earlier=TASKS)
            primitive = method.learn(task, samples, trainer)
        return [t for tensors in primitive.parts().values() for t in tensors.values()]

    for found, wanted in zip(learned(0.5, True), learned(0.0, False), strict=True):
        assert torch.equal(found, wanted)
