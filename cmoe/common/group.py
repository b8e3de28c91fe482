"""The processes that carry a stream together: torch.distributed in a few words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
LOST_PEER = (ConnectionError, TimeoutError)
"""What a collective may raise where another process has gone, besides RuntimeError."""


@dataclass(frozen=True)
class Group:
    """One process of a worker group; alone, it needs no process group.

    Attributes:
        rank: 0 writes what is kept.
        workers: How many there are.
        device: Where this one computes.
    """

    rank: int = 0
    workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T], *, equal: bool = False) -> list[tuple[int, T]]:
        """This rank's items, with their numbers.

        Args:
            items: The same on every rank.
            equal: Give every rank as many, the last item once more where they don't divide: ranks
                with sharded weights must make equally many passes.
        """
        numbered = list(enumerate(items))
        mine = numbered[self.rank :: self.workers]
        if equal and items:
            mine += [numbered[-1]] * (-(-len(items) // self.workers) - len(mine))
        return mine

    def moved(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch on this rank's device."""
        return {name: t.to(self.device, non_blocking=True) for name, t in batch.items()}

    def gather(self, mine: T) -> list[T]:
        """Every rank's object, on every rank."""
        if self.workers == 1:
            return [mine]
        everyone: list[Any] = [None] * self.workers
        dist.all_gather_object(everyone, mine)
        return everyone

    def to_first(self, mine: T) -> list[T]:
        """Every rank's object, on rank 0; nothing elsewhere."""
        if self.workers == 1:
            return [mine]
        everyone: list[Any] | None = [None] * self.workers if self.first else None
        dist.gather_object(mine, everyone)
        return everyone or []

    def wait(self) -> None:
        """Go on when every rank has come here."""
        self.largest(0)

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank. If it fails there, the others end with it."""
        if self.workers == 1:
            return make()
        made: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(made, src=0, device=self.device)
        return made[0]  # type: ignore[no-any-return]

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        if self.workers > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest of the ranks' numbers."""
        found = torch.tensor(value, device=self.device)
        if self.workers > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks."""
        return self.total(values) / self.workers
