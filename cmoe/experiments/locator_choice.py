"""Which feature and which score tell tasks apart, before anything is trained for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from cmoe.data.batches import Collator, slices
from cmoe.data.samples import Sample, Task
from cmoe.modeling.base import find_layers, pooled, pooling_weights, watch_hidden_state
from cmoe.modeling.locator import Bank, locate, make_bank
from cmoe.modeling.settings import LocatorConfig, Pooling, Score

Feature = tuple[int, Pooling]
INLINE_LOSS = 1.0  # points of accuracy that a pass less is worth


def accuracies(
    base: nn.Module,
    collator: Collator,
    tasks: Sequence[Task],
    config: LocatorConfig,
    batch_size: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Percent of samples located right, a mean over tasks, by layer, pooling and score.

    Layer -1 is the decoder's output; the others' states are those that enter them.

    Args:
        base: Frozen, on the device that computes.
        collator: Of the base.
        tasks: A bank is fitted to their training samples and judged on the others.
        config: All other settings of the locator.
        batch_size: Samples a pass.
        seed: Of the VAEs.
    """
    train = [features(base, collator, task.train, batch_size) for task in tasks]
    held_out = [features(base, collator, task.test, batch_size) for task in tasks]
    for layer, pooling in train[0]:
        row: dict[str, Any] = {"layer": layer, "pooling": pooling}
        entries: dict[type[Bank], list[dict[str, Tensor]]] = {}
        for score in get_args(Score):
            bank = make_bank(replace(config, layer=layer, pooling=pooling, score=score))
            if type(bank) not in entries:  # two scores read the same VAEs
                known = enumerate(known[layer, pooling] for known in train)
                entries[type(bank)] = [bank.fit(rows, seed + index) for index, rows in known]
            bank.append(*entries[type(bank)])
            right = [
                (locate(bank, asked[layer, pooling]).tasks == index).float().mean().item()
                for index, asked in enumerate(held_out)
            ]
            row[score] = 100 * sum(right) / len(right)
        yield row


class Choice(NamedTuple):
    """A feature, a score, and the samples located right by it, in percent."""

    layer: int
    pooling: Pooling
    score: Score
    accuracy: float

    def __str__(self) -> str:
        named = self._asdict()
        right = named.pop("accuracy")
        flags = " ".join(f"--locator.{name} {value}" for name, value in named.items())
        return f"{flags}  ({right:.1f})"


def chosen(rows: Sequence[Mapping[str, Any]]) -> Choice:
    """What to locate by: the best feature that the answering pass can compute, if it loses less
    than `INLINE_LOSS` points; else the best one of all, for which the base runs in front.

    A layer's input can be taken inline where no layer below has experts. Before a stream nobody
    knows which layers will: only the input of the first one can be counted on, which
    `locator.placement auto` takes inline.

    Args:
        rows: Of `accuracies`.
    """

    def best(among: Sequence[Mapping[str, Any]]) -> Choice:
        choices = [
            Choice(row["layer"], row["pooling"], score, row[score])
            for row in among
            for score in get_args(Score)
        ]
        return max(choices, key=lambda choice: choice.accuracy)  # the first of equal ones

    front, inline = best(rows), best([row for row in rows if row["layer"] == 0])
    return inline if front.accuracy - inline.accuracy < INLINE_LOSS else front


@torch.no_grad()
def features(
    base: nn.Module, collator: Collator, samples: Sequence[Sample], batch_size: int
) -> dict[Feature, Tensor]:
    """Every layer's features [n, d] of some samples by every pooling, fp32, in one pass."""
    layers = [*range(len(find_layers(base))), -1]
    rows: dict[Feature, list[Tensor]] = {(n, p): [] for n in layers for p in get_args(Pooling)}
    device = next(base.parameters()).device
    for batch in slices(len(samples), batch_size):
        inputs = collator.prompts([samples[i] for i in batch])
        moved = {name: t.to(device) for name, t in inputs.items()}
        weights = {p: pooling_weights(moved, p, base.config) for p in get_args(Pooling)}
        with ExitStack() as watching:
            for number, layer in enumerate(layers):

                def keep(
                    hidden_bsd: Tensor, layer: int = layer, by: Mapping[Any, Tensor] = weights
                ) -> None:
                    for pooling, weights_bs in by.items():
                        rows[layer, pooling].append(pooled(hidden_bsd, weights_bs))

                watching.enter_context(watch_hidden_state(base, number, keep))
            base(**moved, use_cache=False)
    return {feature: torch.cat(parts) for feature, parts in rows.items()}
