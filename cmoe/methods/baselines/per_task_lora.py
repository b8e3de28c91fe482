"""A LoRA for every task, and whoever asks names the task: a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.method import Trainer
from cmoe.methods.settings import LoRAConfig
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PerTaskLoRA(SequentialLoRA):
    """A LoRA for every task, which begins afresh; whoever asks names the task: an oracle."""

    name = "per_task_lora"

    def __init__(self, base: PreTrainedModel, lora: LoRAConfig, seed: int) -> None:
        super().__init__(base, lora, seed)
        self._fresh = self._exported()
        self._adapters: list[Mapping[str, Tensor]] = []
        self._taken: int | None = None

    def append(self, *primitives: Primitive) -> None:
        self._adapters += [p.experts for p in primitives]
        self.tasks += tuple(p.task for p in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        self._load(self._fresh)
        primitive = super().learn(task, samples, trainer)
        self._taken = len(self._adapters)
        self._adapters.append(primitive.experts)
        return primitive

    def answerer(self, stage: int, task: int) -> int:
        return task if task <= stage else BASE

    def _take(self, task: int) -> None:
        if task != self._taken:
            self._load(self._adapters[task])
            self._taken = task
