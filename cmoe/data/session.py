"""What all passes of one worker share, for as long as the worker lives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from cmoe.common.group import Group
from cmoe.data.batches import Collator, slices
from cmoe.data.loader import Kind, Loader
from cmoe.data.samples import Sample

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """A worker's group, its batches, and how its weights lie.

    Attributes:
        group: The workers.
        collator: Of the base.
        loader: Makes batches by it.
        batch_size: Samples of a pass without training.
        sharded: Whether weights are sharded over the workers (ZeRO 3). Every pass gathers them
            then, so that all workers have to make equally many.
    """

    group: Group
    collator: Collator
    loader: Loader
    batch_size: int
    sharded: bool = False

    def each(
        self,
        samples: Sequence[Sample],
        kind: Kind,
        compute: Callable[[Mapping[str, Tensor]], T],
        done: Callable[[int, int], Any],
        batch_size: int | None = None,
    ) -> dict[int, T]:
        """`compute` of each of this worker's batches, by the batch's number among all.

        Args:
            samples: Cut into batches alike for any number of workers.
            kind: What the batches hold.
            compute: Receives a batch on the worker's device.
            done: Told how many of this worker's batches are done, and of how many.
            batch_size: Instead of the session's own.
        """
        batches = slices(len(samples), batch_size or self.batch_size)
        mine = self.group.share(batches, equal=self.sharded)
        inputs = self.loader.batches(kind, samples, [numbers for _, numbers in mine])
        results: dict[int, T] = {}
        for count, ((number, _), batch) in enumerate(zip(mine, inputs, strict=True), 1):
            results[number] = compute(self.group.moved(batch))
            done(count, len(mine))
        return results

    def over(
        self,
        samples: Sequence[Sample],
        kind: Kind,
        compute: Callable[[Mapping[str, Tensor]], Tensor],
        done: Callable[[int, int], Any],
        *,
        first: bool = False,
    ) -> list[Tensor]:
        """`compute` of every batch, in order, fp32 on the CPU; arguments as of `each`.

        Args:
            first: On rank 0 alone, where no other needs it: the others get nothing.
        """
        mine = self.each(samples, kind, lambda batch: compute(batch).float().cpu(), done)
        every = self.group.to_first(mine) if first else self.group.gather(mine)
        merged = {n: rows for part in every for n, rows in part.items()}
        return [merged[n] for n in sorted(merged)]
