"""CMoE on a tiny base as it learns task after task, and what it records worked out from logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from support.devices import DEVICE
from support.plain_trainer import PlainTrainer, make_batch, make_samples
from support.tiny_models import make_base
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.cmoe import CMoE
from cmoe.methods.method import Loss
from cmoe.methods.settings import ExpertsConfig, ProbeConfig
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.settings import LocatorConfig

PAPER: dict[str, Any] = {"gates": "renormalized", "attention": 0, "build_on": "none"}
EXPERTS = ExpertsConfig(rank=4, lora_alpha=8, top_k=2, usage_samples=7, **PAPER)
PROBE = ProbeConfig(
    fraction=0.4, steps=4, gain_samples=6, experts=2, rule="relative", alpha=0.2, init="used"
)
LOCATOR = LocatorConfig(
    layer=2, pooling="mean_text", hidden=8, latent=4, steps=5, batch_size=8, paraphrases=0
)
SAMPLES = {task: make_samples(20, start=100 * i) for i, task in enumerate(("one", "two", "three"))}


def make_method(
    experts: ExpertsConfig = EXPERTS, probe: ProbeConfig = PROBE, seed: int = 3
) -> CMoE:
    return CMoE(make_base(), experts, probe, LOCATOR, seed)


class Watching(PlainTrainer):
    """Keeps a copy of what every training began with and ended in."""

    def __init__(self, method: CMoE, notes: Mapping[str, Any] | None = None) -> None:
        super().__init__(method.module, notes=notes)
        self.began: dict[str, Primitive] = {}
        self.ended: dict[str, Primitive] = {}

    def fit(
        self, phase: str, samples: Sequence[Sample], loss: Loss, steps: int | None = None
    ) -> None:
        self.began[phase] = self.module.learning()
        super().fit(phase, samples, loss, steps)
        self.ended[phase] = self.module.learning()


def learn(
    method: CMoE, task: str, notes: Mapping[str, Any] | None = None
) -> tuple[Primitive, Watching]:
    trainer = Watching(method, notes)
    return method.learn(task, SAMPLES[task], trainer), trainer


@torch.no_grad()
def answer_loss(model: GrowingVLM, task: str, samples: Sequence[Sample]) -> float:
    """Mean cross-entropy of the answers' tokens, from the logits."""
    inputs = make_batch(samples, answers=True)
    labels = inputs.pop("labels")[:, 1:]
    log_probs = model(inputs, task).logits[:, :-1].double().log_softmax(-1)
    kept = labels != -100
    chosen = log_probs.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return -chosen[kept].mean().item()


@torch.no_grad()
def largest_shares(
    model: GrowingVLM, task: str, routers: Mapping[str, Tensor], samples: Sequence[Sample]
) -> list[Tensor]:
    """Per layer the share of the tokens, padding aside, whose largest gate is each expert's."""
    hidden: list[Tensor] = []
    hooks = [
        ffn.register_forward_pre_hook(lambda _, args: hidden.append(args[0])) for ffn in model.ffns
    ]
    inputs = make_batch(samples, answers=True)
    model(inputs, task)
    for hook in hooks:
        hook.remove()
    kept = inputs["attention_mask"].bool()
    assert not kept.all()
    rows = [routers[f"layers.{i}"].to(DEVICE) for i in range(len(hidden))]
    largest = [(h[kept] @ r.T).argmax(-1).cpu() for h, r in zip(hidden, rows, strict=True)]
    return [
        torch.bincount(hits, minlength=len(r)) / len(hits)
        for hits, r in zip(largest, rows, strict=True)
    ]
