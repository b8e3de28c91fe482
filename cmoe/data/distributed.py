"""A pass over samples without training, shared by the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from cmoe.common.group import Group
from cmoe.data.batches import loader, slices
from cmoe.data.samples import Sample


def over_batches(
    group: Group,
    samples: Sequence[Sample],
    batch_size: int,
    collate: Callable[[Sequence[Sample]], dict[str, Tensor]],
    compute: Callable[[Mapping[str, Tensor]], Tensor],
    *,
    equal: bool,
    loader_workers: int,
    done: Callable[[int, int], Any],
) -> list[Tensor]:
    """`compute` of every batch, in order, fp32 on the CPU of every rank.

    Args:
        group: The workers.
        samples: Cut into batches alike for any number of workers.
        batch_size: Samples a batch.
        collate: Makes a batch.
        compute: Receives it on the rank's device.
        equal: As in `Group.share`.
        loader_workers: As in `loader`.
        done: Told how many of this rank's batches are done, and of how many.
    """
    batches = slices(len(samples), batch_size)
    mine = group.share(batches, equal=equal)
    inputs = loader(samples, [b for _, b in mine], collate, loader_workers)
    results: dict[int, Tensor] = {}
    for count, ((number, _), batch) in enumerate(zip(mine, inputs, strict=True), 1):
        results[number] = compute(group.moved(batch)).float().cpu()
        done(count, len(mine))
    merged = {n: rows for part in group.gather(results) for n, rows in part.items()}
    return [merged[n] for n in range(len(batches))]
