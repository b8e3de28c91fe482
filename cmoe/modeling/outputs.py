"""What the growing model's passes take and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from cmoe.modeling.locator import Location
from cmoe.modeling.routers import BASE, Routing, Usage

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


def indices(tasks: Tasks, batch: int, names: Sequence[str]) -> tuple[int, ...]:
    """The tasks of a batch's samples as indices among `names`, or `BASE`.

    Raises:
        ValueError: An unknown task, or another number of tasks than samples.
    """
    if isinstance(tasks, Routing):
        return tasks.tasks
    given = (tasks,) * batch if isinstance(tasks, str | int) else tuple(tasks)
    if len(given) != batch:
        raise ValueError(f"{len(given)} tasks for a batch of {batch} samples")
    index = {name: i for i, name in enumerate(names)} | {i: i for i in range(len(names))}
    index[BASE] = BASE
    for task in given:
        if task not in index:
            have = ", ".join(f"{i} {n}" for i, n in enumerate(names)) or "none yet"
            raise ValueError(f"unknown task {task!r}; tasks: {have}; {BASE} is the base")
    return tuple(index[t] for t in given)
