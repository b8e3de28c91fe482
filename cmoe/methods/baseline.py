"""What all methods beside CMoE have in common: none of them finds a sample's task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cmoe.methods.method import decoder_flops, training_flops
from cmoe.modeling.base import checkpoint_layers, count_parameters, fingerprint, freeze
from cmoe.modeling.locator import Location
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.routers import BASE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Baseline:
    """A method that doesn't locate, and whose training passes all have a backward one.

    Args:
        base: Frozen, and not wrapped yet.
    """

    locates = False
    joint = False
    module: Any

    def __init__(self, base: PreTrainedModel) -> None:
        self.base_digest = fingerprint(base)
        self.base_parameters = count_parameters(base)
        self.tasks: tuple[str, ...] = ()
        self._base_flops = decoder_flops(base)
        self._base = base
        freeze(base)

    def enable_gradient_checkpointing(self, layers: int | None = None) -> None:
        checkpoint_layers(self._base, count=layers)

    def learning_flops(self, task: int, tokens: Mapping[str, int]) -> int:
        """All of their passes have a backward one."""
        return sum(tokens.values()) * training_flops(self._base_flops, self.flops_per_token(task))

    def flops_per_token(self, task: int) -> int:
        """All that is trained works for every token."""
        if task == BASE:
            return self._base_flops
        return 2 * sum(p.numel() for p in self.trained().values())

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in the module."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def expert_similarity(self) -> None:
        return None

    def at_work(self, stage: int) -> set[int]:
        """Any task's if it locates, and else those that are said to answer."""
        learned = range(stage + 1)
        if self.locates:
            return set(learned)
        return {self.answerer(stage, task) for task in learned} - {BASE}

    def answerer(self, stage: int, task: int) -> int:
        raise NotImplementedError("it isn't said what answers")

    def features(self, inputs: Inputs) -> Tensor:
        raise NotImplementedError("this method doesn't locate: there is no task to locate")

    def locate(self, features: Tensor) -> Location:
        raise NotImplementedError("this method doesn't locate: there is no task to locate")
