"""What methods with adapters on the decoder's linear maps have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.baseline import Baseline
from cmoe.methods.method import Forward, Trainer
from cmoe.methods.settings import LoRAConfig, MoELoRAConfig
from cmoe.modeling.base import arguments
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE


class Adapter(Baseline):
    """One adapter that goes on training from task to task: what forgetting looks like.

    A stage's primitive is the whole adapter as it then was; only the latest answers.
    """

    config: LoRAConfig | MoELoRAConfig

    def append(self, *primitives: Primitive) -> None:
        if primitives:
            self._load(primitives[-1].experts)
        self.tasks += tuple(p.task for p in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        trainer.fit("train", samples, self.loss)
        self.tasks += (task,)
        return self._primitive(task, self._exported())

    def loss(self, forward: Forward, inputs: Inputs, tokens: Tensor) -> Tensor:
        """Cross-entropy on the answers."""
        loss: Tensor = forward(**arguments(inputs), num_items_in_batch=tokens).loss
        return loss

    def answerer(self, stage: int, task: int) -> int:
        return stage

    @torch.no_grad()
    def generate(self, inputs: Inputs, task: int, **kwargs: Any) -> Tensor:
        if task != BASE:
            self._take(task)
        with self._off() if task == BASE else self._at_work(inputs):
            sequences: Tensor = self.module.generate(**inputs, **kwargs)
        return sequences

    def _at_work(self, inputs: Inputs) -> AbstractContextManager[None]:
        """What answers beside the adapter that was taken; nothing, but for some."""
        return nullcontext()

    def _take(self, task: int) -> None:
        """See to it that a primitive answers.

        Raises:
            ValueError: It can't any more.
        """
        if task != len(self.tasks) - 1:
            raise ValueError(f"stage {task} is gone: only stage {len(self.tasks) - 1} answers")

    def _primitive(self, task: str, adapter: Mapping[str, Tensor]) -> Primitive:
        return Primitive(task, self.config.rank, self.config.lora_alpha, adapter, {}, {})

    def _exported(self) -> dict[str, Tensor]:
        """The adapter as it is, on the CPU."""
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in self._weights().items()
        }

    def _weights(self) -> Mapping[str, Tensor]:
        """The adapter's tensors by their names in a primitive."""
        raise NotImplementedError

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        """Take an adapter out of a primitive."""
        raise NotImplementedError

    def _off(self) -> AbstractContextManager[None]:
        """The base alone."""
        raise NotImplementedError
