"""A locator in front of answers: a frozen base up to the feature's layer, and the bank of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from cmoe.modeling.base import features, find_layers, fingerprint, freeze, keep_layers
from cmoe.modeling.locator import Location, claimed, locate, make_bank
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.settings import LocatorConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FrontLocator:
    """Finds prompts' tasks as `GrowingVLM.locate` does, and answers nothing.

    What the feature doesn't need of the base isn't kept: the layers behind its own, experts and
    routers, the head.

    Args:
        base: Changed in place.
        config: As of the store.

    Attributes:
        base_digest: Of the whole base.
        tasks: Names of those that are told apart.
        reject_unknown: Whether the base alone answers a sample that no task claims.
    """

    def __init__(self, base: PreTrainedModel, config: LocatorConfig) -> None:
        self.base_digest = fingerprint(base)
        freeze(base)
        layers = len(find_layers(base))
        self._layer = layers if config.layer < 0 else config.layer
        self._pooling = config.pooling
        # A pass ends where it enters the feature's layer, which therefore stays, too.
        keep_layers(base, self._layer + 1)
        base.set_output_embeddings(nn.Identity())
        self.base = base
        self.bank = make_bank(config)
        self.tasks: tuple[str, ...] = ()
        self.reject_unknown = False

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    def append(self, primitive: Primitive) -> None:
        """Add a learned task.

        Raises:
            ValueError: It is known, or its locator entry doesn't fit.
        """
        if primitive.task in self.tasks:
            raise ValueError(f"task {primitive.task!r} is already learned")
        if not primitive.locator:
            raise ValueError(f"task {primitive.task!r} has no locator entry")
        self.bank.append(primitive.locator)
        self.tasks += (primitive.task,)

    @torch.no_grad()
    def locate(self, inputs: Inputs) -> Location:
        """Find the prompts' tasks; there is one at least."""
        return locate(self.bank, features(self.base, self._layer, self._pooling, inputs))

    def claimed(self, location: Location) -> tuple[int, ...]:
        """The task that answers each located sample; the base where none claims it."""
        return claimed(location, reject_unknown=self.reject_unknown)
