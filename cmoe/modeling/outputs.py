"""What the growing model's passes take and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from cmoe.modeling.locator import Location
from cmoe.modeling.routers import Routing, Usage

Inputs = Mapping[str, Tensor]
Tasks = str | int | Sequence[str | int] | Routing


class GrowingOutput(NamedTuple):
    """What a forward pass gives.

    A tuple, as DeepSpeed looks for the tensors that a backward pass starts from in tuples alone.

    Attributes:
        logits: [B, S, vocabulary]; with `labels` [B, T] of the last T places.
        loss: Cross-entropy on the answer tokens, where `labels` were given.
        balance_loss: Sum of the layers' balance losses, where they were recorded.
        usage: Per layer with experts what its router did, where it was recorded.
        past_key_values: The cache, where one was asked for.
        location: Where the pass located its samples, if it had to.
    """

    logits: Tensor
    loss: Tensor | None
    balance_loss: Tensor | None
    usage: tuple[Usage, ...]
    past_key_values: Any
    location: Location | None


@dataclass(frozen=True)
class Generation:
    """Token ids [B, S] as the base's `generate` gives them, and the task of each sample."""

    sequences: Tensor
    tasks: tuple[int, ...]
    location: Location | None


@dataclass
class RoutedPass:
    """A pass in the making; an inline one finds its location on the way."""

    routing: Routing
    location: Location | None = None
