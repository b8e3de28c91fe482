"""EWC: one LoRA whose weights are held, by a term of the loss, where earlier tasks need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmoe.data.samples import Sample
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.method import Forward, Trainer, seed_of
from cmoe.methods.settings import EWCConfig, LoRAConfig
from cmoe.modeling.base import arguments
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EWC(SequentialLoRA):
    """One LoRA whose weights are held where earlier tasks need them.

    A task's importances, the diagonal of the empirical Fisher information, are kept in its
    primitive. The penalties of all tasks together cost no more than one:
    `sum_t F_t (w - w_t)^2` is `S (w - m)^2` and a constant, with `S = sum_t F_t` and
    `m = sum_t F_t w_t / S`.

    Args:
        base: Frozen, and wrapped in place.
        lora: The adapter's size.
        ewc: The penalty.
        seed: Of fresh weights, and of the samples that importances are measured on.
    """

    name = "ewc"

    def __init__(self, base: PreTrainedModel, lora: LoRAConfig, ewc: EWCConfig, seed: int) -> None:
        super().__init__(base, lora, seed)
        self.ewc, self.seed = ewc, seed
        self._importance: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"ewc": asdict(self.ewc)}

    def append(self, *primitives: Primitive) -> None:
        for primitive in primitives:
            super().append(primitive)
            self._hold(primitive.memory)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        primitive = super().learn(task, samples, trainer)
        count = min(self.ewc.samples, len(samples))
        shown = Random(seed_of(self.seed, task, "fisher")).sample(list(samples), count)
        importance = fisher(self.module, self.trained(), shown, trainer)
        self._hold(importance)
        return replace(primitive, memory=importance)

    def loss(self, forward: Forward, inputs: Inputs, tokens: Tensor) -> Tensor:
        return super().loss(forward, inputs, tokens) + self.ewc.weight / 2 * self.penalty()

    def penalty(self) -> Tensor | float:
        """How far important weights have moved from where earlier tasks want them."""
        return sum(
            (self._importance[name] * (p.float() - self._held[name]).square()).sum()
            for name, p in self.trained().items()
            if name in self._importance
        )

    @torch.no_grad()
    def _hold(self, importance: Mapping[str, Tensor]) -> None:
        """Add the penalty of a task that the weights have just learned."""
        for name, p in self.trained().items():
            new, weight = importance[name].to(p.device), p.detach().float()
            before = self._importance.get(name, torch.zeros_like(new))
            held = self._held.get(name, weight)
            total = before + new
            # Where nothing is important the share is 0, and any place will do.
            share = new / total.clamp_min(torch.finfo(total.dtype).tiny)
            self._importance[name], self._held[name] = total, held + share * (weight - held)


def fisher(
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    samples: Sequence[Sample],
    trainer: Trainer,
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information, fp32 on the CPU.

    The mean over samples of the squared gradient of the answer's log-likelihood.

    Args:
        module: Gives the loss of a batch, summed over its answer tokens.
        parameters: By name.
        samples: To measure on.
        trainer: The worker group.
    """
    weights = list(parameters.values())

    def squared(inputs: Inputs) -> Tensor:
        with torch.enable_grad():
            loss = module(**arguments(inputs), num_items_in_batch=1).loss
        gradients = torch.autograd.grad(loss, weights)
        return torch.cat([g.float().square().flatten() for g in gradients])

    mean = (trainer.total("fisher", samples, squared) / len(samples)).cpu()
    parts = mean.split([p.numel() for p in weights])
    shaped = zip(parameters.items(), parts, strict=True)
    return {name: part.view(p.shape).contiguous() for (name, p), part in shaped}
