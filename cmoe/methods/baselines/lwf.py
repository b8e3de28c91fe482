"""LwF: one LoRA that a term of the loss holds to the answers it gave before the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.method import Forward, Trainer
from cmoe.methods.settings import LoRAConfig, LwFConfig
from cmoe.modeling.base import arguments
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LwF(SequentialLoRA):
    """One LoRA that is to answer a new task's samples also as it did before it learned them.

    Args:
        base: Frozen, and wrapped in place.
        lora: The adapter's size.
        lwf: The term.
        seed: Of fresh weights.
    """

    name = "lwf"

    def __init__(self, base: PreTrainedModel, lora: LoRAConfig, lwf: LwFConfig, seed: int) -> None:
        super().__init__(base, lora, seed)
        self.lwf = lwf
        self._before: dict[str, Tensor] = {}  # the adapter as the latest task began; none at first

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"lwf": asdict(self.lwf)}

    def learning_flops(self, task: int, tokens: Mapping[str, int]) -> int:
        again = self._base_flops + self.flops_per_token(task) if task > 0 else 0
        return super().learning_flops(task, tokens) + sum(tokens.values()) * again

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        if self.tasks:
            self._before = {name: p.detach().clone() for name, p in self.trained().items()}
        return super().learn(task, samples, trainer)

    def loss(self, forward: Forward, inputs: Inputs, tokens: Tensor) -> Tensor:
        out = forward(**arguments(inputs), num_items_in_batch=tokens)
        loss: Tensor = out.loss
        if not self._before:
            return loss
        with torch.no_grad():
            before = torch.func.functional_call(self.module, self._before, kwargs=arguments(inputs))
        kept = distillation(out.logits, before.logits, inputs["labels"], self.lwf.temperature)
        return loss + self.lwf.weight * kept / tokens


def distillation(
    logits_bsv: Tensor, before_bsv: Tensor, labels_bs: Tensor, temperature: float
) -> Tensor:
    """Cross-entropy with the earlier model's softened answers, summed over answer tokens.

    Both are softened as in equation 3 of the paper: probabilities to the power of
    `1 / temperature`, made to sum to 1 again.

    Args:
        logits_bsv: [B, S, V] of the places that have labels, with gradients.
        before_bsv: The earlier model's.
        labels_bs: [B, S], -100 where nothing is answered.
        temperature: Divides the logits.
    """
    answered = labels_bs[:, 1:] != -100
    student_nv = logits_bsv[:, :-1][answered].float() / temperature
    teacher_nv = before_bsv[:, :-1][answered].float() / temperature
    return F.cross_entropy(student_nv, teacher_nv.softmax(-1), reduction="sum")
