"""What is measured of a task before it is learned, by passes over a few of its samples.

All workers share the passes, and all get the same results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.method import Trainer
from cmoe.methods.probe import Gain, Probing
from cmoe.modeling.base import resuming
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.outputs import GrowingOutput, Inputs

Shares = tuple[tuple[float, ...], ...]
Pass = tuple[str, Mapping[int, int]]
"""Whose experts answer, and how many of those being learned work by layer, where not all do."""


def answer_losses(
    model: GrowingVLM, samples: Sequence[Sample], trainer: Trainer
) -> dict[str, float]:
    """How well each learned task answers some samples: its loss per answer token."""
    passes: list[Pass] = [(task, {}) for task in model.tasks]
    losses, tokens, _ = _losses(model, "nearest", samples, trainer, passes)
    found = (losses.sum(0) / tokens.sum()).tolist()
    return dict(zip(model.tasks, found, strict=True))


def probing(
    model: GrowingVLM,
    task: str,
    samples: Sequence[Sample],
    gain_samples: int,
    trainer: Trainer,
    again: str = "",
) -> Probing:
    """How the probes of the task being learned are used, and what they gain.

    Args:
        model: With the trained probes.
        task: Its name.
        samples: That trained none of them.
        gain_samples: At most this many of them measure gains: for every probe a pass from its layer
            on. The pass with all probes measures usage, too; the other samples need no more.
        trainer: The worker group.
        again: Behind the phases' names, where a task is measured a second time.
    """
    few, others = samples[:gain_samples], samples[gain_samples:]
    counts = {f.layer: 0 if f.learning is None else len(f.learning) for f in model.ffns}
    passes: list[Pass] = [(task, {}), (task, dict.fromkeys(counts, 0))]
    passes += [(task, {layer: kept}) for layer, n in counts.items() for kept in range(n)]
    losses, tokens, used = _losses(model, f"loss gain{again}", few, trainer, passes)
    if others:
        used += _used(model, f"measure{again}", task, others, trainer)
    largest, gates = _shares(model, used)
    every, none, *some = losses.T
    gains, at = [], 0
    for count in counts.values():
        steps = [*some[at : at + count], every]  # the loss with none, with the first, ...
        layer = [_gain(steps[0] - every, tokens)]
        layer += [_gain(a - b, tokens) for a, b in pairwise(steps[1:])]
        gains.append(tuple(layer))
        at += count
    older = tuple(len(f.frozen) for f in model.ffns)
    whole, loss = _gain(none - every, tokens), float(every.sum() / tokens.sum())
    return Probing(older, largest, gates, tuple(gains), whole, loss)


def greedy_order(
    model: GrowingVLM, task: str, samples: Sequence[Sample], count: int, trainer: Trainer
) -> list[int]:
    """The layers whose probes lower the loss most, each beside those before it.

    Args:
        model: With the trained probes.
        task: Its name.
        samples: That trained none of them; a pass over them for every layer left, `count` times.
        count: How many layers.
        trainer: The worker group.
    """
    left, chosen = [ffn.layer for ffn in model.ffns], list[int]()
    while left and len(chosen) < count:
        off = {layer: dict.fromkeys(set(left) - {layer}, 0) for layer in left}
        losses, *_ = _losses(model, "greedy", samples, trainer, [(task, off[n]) for n in left])
        chosen.append(left.pop(int(losses.sum(0).argmin())))
    return chosen


def usage(
    model: GrowingVLM, phase: str, task: str, samples: Sequence[Sample], trainer: Trainer
) -> tuple[Shares, Shares]:
    """Shares of the tokens by layer and expert: those whose largest gate it has, mean gates."""
    return _shares(model, _used(model, phase, task, samples, trainer))


def _used(
    model: GrowingVLM, phase: str, task: str, samples: Sequence[Sample], trainer: Trainer
) -> list[Tensor]:
    """Every batch's usage, as of `_recorded`."""

    @torch.no_grad()
    def record(inputs: Inputs) -> Tensor:
        return _recorded(model(_unlabelled(inputs), task, record=True, logits_to_keep=1))

    return trainer.map(phase, samples, record, answers=True)


def _recorded(out: GrowingOutput) -> Tensor:
    """Every layer's usage behind one another: largest [E], gates [E]."""
    return torch.cat([part for u in out.usage for part in (u.largest, u.gates)])


def _shares(model: GrowingVLM, used: Sequence[Tensor]) -> tuple[Shares, Shares]:
    """As of `usage`, of what was recorded in batches."""
    total = torch.stack([*used]).double().sum(0)
    largest, gates, at = [], [], 0
    for ffn in model.ffns:
        count = len(ffn.frozen) + (0 if ffn.learning is None else len(ffn.learning))
        hits, mass = total[at : at + 2 * count].view(2, count)
        tokens = hits.sum().clamp_min(1)
        largest.append(tuple((hits / tokens).tolist()))
        gates.append(tuple((mass / tokens).tolist()))
        at += 2 * count
    return tuple(largest), tuple(gates)


def _losses(
    model: GrowingVLM,
    phase: str,
    samples: Sequence[Sample],
    trainer: Trainer,
    passes: Sequence[Pass],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Every sample's summed loss in every pass [N, P], and its answer tokens [N], fp64.

    With them every batch's usage in the first pass, as of `_recorded`. The others compute what
    differs from it alone, from the lowest layer on where it does.
    """
    first, *others = passes
    begins = [_difference(first, other, len(model.ffns)) for other in others]

    @torch.no_grad()
    def compute(inputs: Inputs) -> Tensor:
        """[B, P + 1], and beside a batch's first row what was recorded."""
        labels, unlabelled = inputs["labels"], _unlabelled(inputs)
        # No layer needs another's keys, and some wouldn't be there.
        kwargs = {"logits_to_keep": labels.shape[1], "use_cache": False}
        with resuming(model.base) as start_at:
            out = model(unlabelled, first[0], kept=first[1], record=True, **kwargs)
            used, columns = _recorded(out), [_summed(out.logits, labels)]
            for (task, kept), layer in zip(others, begins, strict=True):
                start_at(layer)
                out = model(unlabelled, task, kept=kept, **kwargs)
                columns.append(_summed(out.logits, labels))
        columns.append(_targets(labels).ne(-100).sum(1).float())
        used_bu = F.pad(used[None], (0, 0, 0, len(labels) - 1))
        return torch.cat([torch.stack(columns, 1), used_bu], 1)

    found = trainer.map(phase, samples, compute, answers=True)
    width = len(passes) + 1
    rows = torch.cat([each[:, :width] for each in found]).double()
    return rows[:, :-1], rows[:, -1], [each[0, width:] for each in found]


def _difference(one: Pass, other: Pass, layers: int) -> int:
    """The lowest layer where two passes differ, of so many."""
    (task, kept), (others, others_kept) = one, other
    if task != others:
        return 0
    differ = (n for n in range(layers) if kept.get(n) != others_kept.get(n))
    return next(differ, layers)


def _summed(logits_btv: Tensor, labels_bt: Tensor) -> Tensor:
    """Every sample's summed cross-entropy [B], fp32."""
    each_bt = F.cross_entropy(
        logits_btv[:, :-1].float().transpose(1, 2), _targets(labels_bt), reduction="none"
    )
    return each_bt.sum(1)  # 0 where a label is ignored


def _targets(labels_bt: Tensor) -> Tensor:
    """A place's logits are of the next one's token."""
    return labels_bt[:, 1:]


def _gain(falls_n: Tensor, tokens_n: Tensor) -> Gain:
    """The mean fall per token, a ratio of sums over samples, and its standard error."""
    value, count = float(falls_n.sum() / tokens_n.sum()), len(falls_n)
    if count < 2:
        return Gain(value, abs(value))  # nothing to tell it from chance by
    left_n = falls_n - value * tokens_n
    error = math.sqrt(count / (count - 1) * float(left_n.square().sum())) / float(tokens_n.sum())
    return Gain(value, error)


def _unlabelled(inputs: Inputs) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name != "labels"}
