"""The base alone: where every method begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.baseline import Baseline
from cmoe.methods.method import Trainer
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ZeroShot(Baseline):
    """The base alone, which learns nothing: where everyone begins."""

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__(base)
        self.module = base

    def settings(self) -> dict[str, Any]:
        return {"method": "zero_shot"}

    def append(self, *primitives: Primitive) -> None:
        self.tasks += tuple(p.task for p in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        self.tasks += (task,)
        return Primitive(task, 0, 0.0, {}, {}, {})

    def answerer(self, stage: int, task: int) -> int:
        return BASE

    @torch.no_grad()
    def generate(self, inputs: Inputs, task: int, **kwargs: Any) -> Tensor:
        sequences: Tensor = self._base.generate(**inputs, **kwargs)  # type: ignore[operator]
        return sequences
