"""Every method with an adapter on a tiny base, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from support.devices import DEVICE
from support.plain_trainer import PlainTrainer, make_samples
from support.tiny_models import (
    LAYERS,
    make_base,
    make_inputs,
    untouched_base,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from cmoe.data.samples import Sample
from cmoe.methods.baselines.ewc import EWC
from cmoe.methods.baselines.hide_llava import HiDeLLaVA
from cmoe.methods.baselines.lwf import LwF
from cmoe.methods.baselines.moelora import MoELoRA
from cmoe.methods.baselines.multitask import JointLoRA
from cmoe.methods.baselines.olora import OLoRA
from cmoe.methods.baselines.per_task_lora import PerTaskLoRA
from cmoe.methods.baselines.replay import Replay
from cmoe.methods.baselines.zero_shot import ZeroShot
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.method import Trainer
from cmoe.methods.settings import (
    EWCConfig,
    HiDeConfig,
    LoRAConfig,
    LwFConfig,
    MoELoRAConfig,
    OLoRAConfig,
    ReplayConfig,
)
from cmoe.modeling.primitive import Primitive

CONFIG = LoRAConfig(rank=4, lora_alpha=8)
MIXTURE = MoELoRAConfig(experts=3, rank=4, lora_alpha=8)
TASKS = ("one", "two", "three")
NOBODY = cast(Trainer, None)  # fails whoever asks it for anything

Rival = SequentialLoRA | MoELoRA
METHODS: dict[str, Callable[[PreTrainedModel, int], Rival]] = {
    "lora": lambda base, seed: SequentialLoRA(base, CONFIG, seed),
    "ewc": lambda base, seed: EWC(base, CONFIG, EWCConfig(samples=5), seed),
    "lwf": lambda base, seed: LwF(base, CONFIG, LwFConfig(), seed),
    "moelora": lambda base, seed: MoELoRA(base, MIXTURE, seed),
    "olora": lambda base, seed: OLoRA(base, CONFIG, OLoRAConfig(), seed),
    "hide_llava": lambda base, seed: HiDeLLaVA(base, CONFIG, HiDeConfig(), seed),
    "replay": lambda base, seed: Replay(base, CONFIG, ReplayConfig(samples=3), seed),
    "per_task_lora": lambda base, seed: PerTaskLoRA(base, CONFIG, seed),
    "multitask": lambda base, seed: JointLoRA(base, CONFIG, seed),
}
FORGETFUL = ("lora", "ewc", "lwf", "moelora", "olora", "replay")  # their latest stage alone answers


def make_method(name: str, seed: int = 0) -> Rival:
    return METHODS[name](make_base(), seed)


def samples_of(task: str) -> list[Sample]:
    return make_samples(8, start=100 * TASKS.index(task))


def learn(method: Rival, task: str) -> Primitive:
    earlier = {name: samples_of(name) for name in method.tasks}
    return method.learn(task, samples_of(task), PlainTrainer(method.module, earlier=earlier))


@torch.no_grad()
def logits(method: Rival) -> Tensor:
    out: Tensor = method.module(**make_inputs()).logits
    return out


@torch.no_grad()
def answered(generate: Callable[..., Any], *given: Any, **inputs: Any) -> list[Tensor]:
    """The sequences, and the logits of every step."""
    how = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    made = generate(*given, **inputs, **how, return_dict_in_generate=True)
    return [made.sequences, *made.logits]


def answers(method: Rival | ZeroShot, task: int) -> list[Tensor]:
    return answered(method.generate, make_inputs(), task)


def untouched_answers() -> list[Tensor]:
    base: Any = untouched_base()
    return answered(base.generate, **make_inputs())


def stage_answers(method: Rival) -> list[Tensor]:
    """Of everything that answers any task, also one to come, by now."""
    stage = len(method.tasks) - 1
    answering = sorted({method.answerer(stage, task) for task in range(len(TASKS))})
    return [tensor for index in answering for tensor in answers(method, index)]


def merged(products: Mapping[str, Tensor]) -> PreTrainedModel:
    """An untouched base with products `BA` added to its maps, named as PEFT does."""
    base = untouched_base()
    for name, product in products.items():
        linear: Any = base.get_submodule(name.removeprefix("base_model.model."))
        linear.weight += product.to(linear.weight)
    return base


def adapted(primitive: Primitive) -> dict[str, tuple[Tensor, Tensor]]:
    """`A [r, in]` and `B [out, r]` of each map that a primitive adapts."""
    found: dict[str, list[Tensor]] = {}
    for name in sorted(primitive.experts):  # A before B
        found.setdefault(name.partition(".lora_")[0], []).append(primitive.experts[name].to(DEVICE))
    assert len(found) == 7 * LAYERS
    return {name: (A, B) for name, (A, B) in found.items()}


def alike(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def assert_same(got: Primitive, want: Primitive) -> None:
    """To the bit."""
    assert (got.task, got.rank, got.lora_alpha) == (want.task, want.rank, want.lora_alpha)
    assert got.parts().keys() == want.parts().keys()
    for part, tensors in want.parts().items():
        assert got.parts()[part].keys() == tensors.keys()
        assert all(torch.equal(got.parts()[part][n], t) for n, t in tensors.items())


def frozen(module: nn.Module) -> dict[str, Tensor]:
    """The base's own weights, by their names before it was wrapped."""
    inner = ".base_layer.", ".linear."
    named = {}
    for name, p in module.named_parameters():
        if not p.requires_grad:
            name = name.removeprefix("base_model.model.")
            named[name.replace(inner[0], ".").replace(inner[1], ".")] = p.detach().clone()
    return named
