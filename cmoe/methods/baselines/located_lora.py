"""A LoRA for every task, found by cmoe's locator: the simplest method that forgets nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.baselines.per_task_lora import PerTaskLoRA
from cmoe.methods.locating import fit_entry
from cmoe.methods.method import Trainer
from cmoe.methods.settings import LoRAConfig
from cmoe.modeling.base import find_layers, hidden_state, pooled, pooling_weights
from cmoe.modeling.locator import Location, locate, make_bank
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.settings import LocatorConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LocatedLoRA(PerTaskLoRA):
    """`per_task_lora`, but nobody names the task: the locator finds it, as for `cmoe`.

    Args:
        base: Frozen, and wrapped in place.
        lora: The adapters' size.
        locator: How samples are matched to tasks.
        seed: Of fresh weights.
    """

    name = "located_lora"
    locates = True

    def __init__(
        self, base: PreTrainedModel, lora: LoRAConfig, locator: LocatorConfig, seed: int
    ) -> None:
        super().__init__(base, lora, seed)
        self._seed, self._locator = seed, locator
        self._layers = len(find_layers(base))
        self._layer = self._layers if locator.layer < 0 else locator.layer
        self._bank = make_bank(locator)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"locator": asdict(self._locator)}

    def append(self, *primitives: Primitive) -> None:
        self._bank.append(*(p.locator for p in primitives))
        super().append(*primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        device = next(self._base.parameters()).device
        primitive = super().learn(task, samples, trainer)
        entry = fit_entry(self._bank, self.features, task, samples, trainer, self._seed, device)
        self._bank.append(entry)
        return replace(primitive, locator=entry)

    def learning_flops(self, task: int, tokens: Mapping[str, int]) -> int:
        """Features are a part of a forward pass of the base."""
        trained = {phase: n for phase, n in tokens.items() if phase != "features"}
        features = tokens.get("features", 0) * self._base_flops * self._layer // self._layers
        return super().learning_flops(task, trained) + features

    def answerer(self, stage: int, task: int) -> int:
        raise NotImplementedError("the locator finds what answers")

    @torch.no_grad()
    def features(self, inputs: Inputs) -> Tensor:
        weights_bs = pooling_weights(inputs, self._locator.pooling, self._base.config)
        with self._off():
            return pooled(hidden_state(self._base, self._layer, inputs), weights_bs)

    def locate(self, features: Tensor) -> Location:
        return locate(self._bank, features)
