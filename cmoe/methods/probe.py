"""PGKE: which layers a task needs new experts in, how many, and what they start from.

Probe experts are trained on a part of the task's data in every layer, and measured on another part
(method, "PGKE"). What was measured does not depend on thresholds, counts or budgets: one `Probing`
serves every `decide`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.settings import ProbeConfig, Score
from cmoe.modeling.experts import fresh_pair
from cmoe.modeling.ffn import ROUTER_STD, GrowingFFN
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.primitive import Primitive


@dataclass(frozen=True)
class Probing:
    """What was measured; one entry per layer, and in the order of the layer's experts.

    Attributes:
        older: Experts that were there before the probes, `E_l`.
        largest: Share of the tokens whose largest gate is the expert's.
        gates: The expert's mean gate.
        gain: Rise of the loss per answer token when the layer's probes are switched off.
        chance: Drawn from 0 to 1: a score that has nothing to do with the task.
    """

    older: tuple[int, ...]
    largest: tuple[tuple[float, ...], ...]
    gates: tuple[tuple[float, ...], ...]
    gain: tuple[float, ...]
    chance: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Probing:
        """From its JSON."""
        rows = {name: tuple(map(tuple, values[name])) for name in ("largest", "gates")}
        gain, chance = (tuple(values[name]) for name in ("gain", "chance"))
        return cls(older=tuple(values["older"]), gain=gain, chance=chance, **rows)

    def scores(self) -> dict[Score, tuple[float, ...]]:
        """Every layer's score, by each definition of what was measured (method, "PGKE")."""
        return {
            "frequency": tuple(math.fsum(own) for own in self.by_probe("frequency")),
            "excess": tuple(math.fsum(own) for own in self.by_probe("excess")),
            "loss_gain": self.gain,
        }

    def score(self, name: Score) -> tuple[float, ...]:
        """Every layer's score, by the definition that decides."""
        return self.chance if name == "random" else self.scores()[name]

    def by_probe(self, score: Score) -> tuple[tuple[float, ...], ...]:
        """Each layer's score shared out to its probes.

        Their own frequency; their own excess; of other scores their part by frequency.
        """
        out = []
        for layer, (older, largest) in enumerate(zip(self.older, self.largest, strict=True)):
            own = largest[older:]
            if score == "excess":
                own = tuple(f - 1 / len(largest) for f in own)
            elif score != "frequency":
                whole = sum(own) or 1.0
                own = tuple(self.score(score)[layer] * f / whole for f in own)
            out.append(own)
        return tuple(out)


@dataclass(frozen=True)
class Decision:
    """Where a task grows.

    Attributes:
        experts: Layer -> new experts.
        threshold: A layer's score had to exceed it; None where none was set.
        cut: Layers that passed the threshold and not the budget.
    """

    experts: Mapping[int, int]
    threshold: float | None
    cut: tuple[int, ...]


def split(
    samples: Sequence[Sample], config: ProbeConfig, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Disjoint samples that train and that measure the probes.

    Raises:
        ValueError: There are fewer than two.
    """
    if len(samples) < 2:
        raise ValueError(
            f"{len(samples)} training samples; a probe needs two, or probe.enabled off"
        )
    count = min(max(1, round(config.fraction * len(samples))), config.max_samples)
    chosen = Random(seed).sample(range(len(samples)), min(2 * count, len(samples)))
    half = len(chosen) // 2
    return [samples[i] for i in chosen[:half]], [samples[i] for i in chosen[half:]]


def decide(
    probing: Probing, config: ProbeConfig, *, per_layer: int, costs: Sequence[int]
) -> Decision:
    """Layers and counts by the rule of the configuration.

    Args:
        probing: What was measured.
        config: The rule.
        per_layer: New experts of a layer with `count: fixed`.
        costs: Scalars that one new expert adds to each layer, with its router row.
    """
    scores = probing.score(config.score)
    threshold = None
    if config.alpha is not None:
        threshold = fmean(scores) - config.alpha * pstdev(scores)
    floor = -math.inf if threshold is None else threshold
    alone = probing.by_probe(config.score)
    passed = sorted(
        (layer for layer, score in enumerate(scores) if score > floor),
        key=lambda layer: (-scores[layer], layer),
    )
    experts: dict[int, int] = {}
    cut: list[int] = []
    added = 0
    for layer in passed:
        count = per_layer
        if config.count == "per_probe":
            # The layer passed: it grows, even where no probe passes without the others.
            count = max(1, sum(s > floor for s in alone[layer]))
        full = config.max_layers is not None and len(experts) >= config.max_layers
        limit, cost = config.max_added_parameters, count * costs[layer]
        if cut or full or (limit is not None and added + cost > limit):
            cut.append(layer)  # the budget ends the list: no later, cheaper layer slips in
            continue
        experts[layer], added = count, added + cost
    return Decision(dict(sorted(experts.items())), threshold, tuple(sorted(cut)))


def starting_weights(
    model: GrowingVLM,
    probes: Primitive,
    probing: Probing,
    decision: Decision,
    config: ProbeConfig,
    rank: int,
    seed: int,
) -> tuple[dict[str, Tensor], dict[int, list[int | None]]]:
    """What new experts and the task's routers start from, named as in a primitive.

    Routers start from the probes' routers: the older experts' rows, and for a new expert its
    source's row.

    Args:
        model: The model, without the probes.
        probes: The trained probes.
        rank: Of the new experts; sources of another rank are passed over.
        seed: Of fresh experts.

    Returns:
        The weights, and per layer the index of each new expert's source, None for a fresh one.
    """
    init: dict[str, Tensor] = {}
    sources: dict[int, list[int | None]] = {}
    generator = torch.Generator().manual_seed(seed)
    for ffn in model.ffns:
        older = len(ffn.frozen)
        router = probes.routers[ffn.router_key]
        count = decision.experts.get(ffn.layer, 0)
        used = _most_used(probing.gates[ffn.layer], older, config.init)
        fit = [e for e in used if (probes.rank if e >= older else ffn.frozen.ranks[e]) == rank]
        chosen = [*fit[:count], *[None] * (count - len(fit))]
        rows = [router[:older]]
        for source in chosen:
            fresh_row = torch.randn(1, router.shape[1], generator=generator) * ROUTER_STD
            rows.append(fresh_row if source is None else router[source : source + 1])
        init[ffn.router_key] = torch.cat(rows)
        if not count:
            continue
        sources[ffn.layer] = chosen
        for name in ffn.maps:
            pairs = [_start(ffn, name, probes, source, rank, generator) for source in chosen]
            key = ffn.expert_key(name)
            init[f"{key}.A"] = torch.cat([A for A, _ in pairs])
            init[f"{key}.B"] = torch.cat([B for _, B in pairs])
    return init, sources


def _start(
    ffn: GrowingFFN,
    name: str,
    probes: Primitive,
    source: int | None,
    rank: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One map's `A [1, r, in]` and `B [1, out, r]` of a probe, of an older expert, or fresh."""
    if source is None:
        return fresh_pair(1, rank, ffn.maps[name].linear, generator)
    key, probe = ffn.expert_key(name), source - len(ffn.frozen)
    if probe < 0:
        expert = ffn.expert(source)
        return expert[f"{key}.A"].cpu(), expert[f"{key}.B"].cpu()
    A, B = probes.experts[f"{key}.A"], probes.experts[f"{key}.B"]
    return A[probe : probe + 1], B[probe : probe + 1]


def _most_used(gates: Sequence[float], older: int, init: str) -> list[int]:
    """Experts that new ones may start from, by their mean gate."""
    first = {"used": 0, "probe": older, "fresh": len(gates)}[init]
    return sorted(range(first, len(gates)), key=lambda e: (-gates[e], e))
