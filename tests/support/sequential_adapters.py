"""One LoRA on a tiny base, as it learns task after task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from support.plain_trainer import PlainTrainer, make_samples
from support.tiny_models import make_base
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.settings import LoRAConfig
from cmoe.modeling.primitive import Primitive

CONFIG = LoRAConfig(rank=4, lora_alpha=8)
TASKS = ("one", "two", "three")


def make_lora() -> SequentialLoRA:
    return SequentialLoRA(make_base(), CONFIG, 0)


def samples_of(task: str, count: int = 8) -> list[Sample]:
    return make_samples(count, start=100 * TASKS.index(task))


def learn(method: SequentialLoRA, task: str) -> tuple[Primitive, PlainTrainer]:
    trainer = PlainTrainer(method.module)
    return method.learn(task, samples_of(task), trainer), trainer


def logits_of(method: SequentialLoRA, inputs: Mapping[str, Tensor]) -> Tensor:
    shown = {name: t for name, t in inputs.items() if name != "labels"}
    logits: Tensor = method.module(**shown).logits
    return logits


def answer_loss(logits_bsv: Tensor, labels_bs: Tensor) -> Tensor:
    """Cross-entropy, summed over answer tokens."""
    return F.cross_entropy(
        logits_bsv[:, :-1].flatten(0, 1), labels_bs[:, 1:].flatten(), reduction="sum"
    )


def learns_as_lora(method: SequentialLoRA, tasks: Sequence[str] = TASKS) -> list[bool]:
    """Per task in turn, whether it learns what a LoRA without its term does, to the bit."""
    plain = make_lora()
    return [same_training(learn(method, task)[0], learn(plain, task)[0]) for task in tasks]


def same_training(a: Primitive, b: Primitive) -> bool:
    assert a.experts.keys() == b.experts.keys()
    return all(torch.equal(a.experts[name], t) for name, t in b.experts.items())
