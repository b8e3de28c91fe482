"""PGKE: which layers a task needs new experts in, how many, and what they start from.

Probe experts are trained on a part of the task's data in every layer, and measured on another part
(method, "PGKE"). What was measured does not depend on thresholds, counts or budgets: one `Probing`
serves every `decide`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from random import Random
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.settings import ProbeConfig, Rule, Score
from cmoe.modeling.experts import fresh_pair
from cmoe.modeling.ffn import GrowingFFN
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.growth import ROUTER_STD
from cmoe.modeling.primitive import Primitive

WHOLE_ERRORS = 3.0
"""Standard errors that the gain of all probes together has to exceed for a task to grow at all.

A task that needs experts gains fifteen and more of them, one that was learned before about none.
"""


class Gain(NamedTuple):
    """By how much the loss per answer token falls, and the standard error of that."""

    value: float
    error: float

    def real(self, errors: float = 1.0) -> bool:
        """Whether it exceeds so many standard errors."""
        return self.value > errors * self.error


@dataclass(frozen=True)
class Probing:
    """What was measured; one entry per layer, and in the order of the layer's experts.

    Attributes:
        older: Experts that were there before the probes, `E_l`.
        largest: Share of the tokens whose largest gate is the expert's.
        gates: The expert's mean gate.
        gains: What all of the layer's probes gain while those of other layers work; then what its
            second gains beside its first, its third beside these two, and so on.
        whole: What the probes of all layers gain together.
        loss: Per answer token, with all of them.
    """

    older: tuple[int, ...]
    largest: tuple[tuple[float, ...], ...]
    gates: tuple[tuple[float, ...], ...]
    gains: tuple[tuple[Gain, ...], ...]
    whole: Gain
    loss: float

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Probing:
        """From its JSON."""
        rows = {name: tuple(map(tuple, values[name])) for name in ("largest", "gates")}
        gains = tuple(tuple(Gain(*gain) for gain in layer) for layer in values["gains"])
        whole, older = Gain(*values["whole"]), tuple(values["older"])
        return cls(older=older, gains=gains, whole=whole, loss=values["loss"], **rows)

    def scores(self) -> dict[Score, tuple[float, ...]]:
        """Every layer's score, by each definition of what was measured (method, "PGKE")."""
        return {
            "frequency": tuple(math.fsum(own) for own in self.by_probe("frequency")),
            "excess": tuple(math.fsum(own) for own in self.by_probe("excess")),
            "loss_gain": tuple(layer[0].value for layer in self.gains),
        }

    def by_probe(self, score: Score) -> tuple[tuple[float, ...], ...]:
        """Each layer's score shared out to its probes.

        Their own frequency; their own excess; of the gain their part by frequency.
        """
        out = []
        for older, largest, gains in zip(self.older, self.largest, self.gains, strict=True):
            own = largest[older:]
            if score == "excess":
                own = tuple(f - 1 / len(largest) for f in own)
            elif score == "loss_gain":
                whole = sum(own) or 1.0
                own = tuple(gains[0].value * f / whole for f in own)
            out.append(own)
        return tuple(out)


@dataclass(frozen=True)
class Decision:
    """Where a task grows.

    Attributes:
        experts: Layer -> new experts.
        threshold: What a layer's score or gain had to exceed; None where none was set.
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
    probing: Probing,
    config: ProbeConfig,
    *,
    per_layer: int,
    costs: Sequence[int],
    beside: Sequence[int] = (),
    seed: int = 0,
) -> Decision:
    """Layers and counts by the rule of the configuration.

    Args:
        probing: What was measured.
        config: The rule.
        per_layer: New experts of a layer with `count: fixed`.
        costs: Scalars that one new expert adds to each layer, with its router row.
        beside: What each layer that grows adds beside its experts: its attention's adapter.
        seed: Of the layers that `random` draws.
    """
    threshold, counts = _passing(probing, config, per_layer, seed)
    experts: dict[int, int] = {}
    cut: list[int] = []
    added = 0
    for layer, count in counts.items():
        full = config.max_layers is not None and len(experts) >= config.max_layers
        limit = config.max_added_parameters
        cost = count * costs[layer] + sum(beside[layer : layer + 1])
        if cut or full or (limit is not None and added + cost > limit):
            cut.append(layer)  # the budget ends the list: no later, cheaper layer slips in
            continue
        experts[layer], added = count, added + cost
    return Decision(dict(sorted(experts.items())), threshold, tuple(sorted(cut)))


def _passing(
    probing: Probing, config: ProbeConfig, per_layer: int, seed: int
) -> tuple[float | None, dict[int, int]]:
    """The threshold, and how many experts each layer that passes it gains, the first one first."""
    layers = range(len(probing.older))
    if config.rule == "relative":
        return _relative(probing, config, per_layer)
    if config.rule == "gain":
        return _by_gain(probing, config, per_layer)
    chosen = _by_depth(config.rule, len(layers), min(config.max_layers or 0, len(layers)), seed)
    return None, dict.fromkeys(chosen, per_layer)


def _relative(
    probing: Probing, config: ProbeConfig, per_layer: int
) -> tuple[float | None, dict[int, int]]:
    """Layers whose score exceeds mean - alpha * deviation over the layers (arXiv 2503.21227)."""
    scores = probing.scores()[config.score]
    threshold = None
    if config.alpha is not None:
        threshold = fmean(scores) - config.alpha * pstdev(scores)
    floor = -math.inf if threshold is None else threshold
    alone = probing.by_probe(config.score)
    passed = sorted(
        (layer for layer, score in enumerate(scores) if score > floor),
        key=lambda layer: (-scores[layer], layer),
    )
    counts = dict.fromkeys(passed, per_layer)
    if config.count == "per_probe":
        # The layer passed: it grows, even where no probe passes without the others.
        counts = {layer: max(1, sum(s > floor for s in alone[layer])) for layer in passed}
    return threshold, counts


def _by_gain(probing: Probing, config: ProbeConfig, per_layer: int) -> tuple[float, dict[int, int]]:
    """Layers whose gain is real and not small beside the whole; none where the whole isn't real.

    Where the whole is and no layer's own, as each does the work of any other, the best one grows.
    """
    threshold = config.min_gain * max(probing.whole.value, 0.0)

    def passes(gain: Gain) -> bool:
        return gain.real() and gain.value > threshold

    order = sorted(range(len(probing.gains)), key=lambda layer: -probing.gains[layer][0].value)
    passed = [layer for layer in order if passes(probing.gains[layer][0])] or order[:1]
    if not probing.whole.real(WHOLE_ERRORS):
        return threshold, {}
    counts = dict.fromkeys(passed, per_layer)
    if config.count == "per_probe":
        counts = {
            layer: 1 + sum(1 for _ in takewhile(passes, probing.gains[layer][1:]))
            for layer in passed
        }
    return threshold, counts


def _by_depth(rule: Rule, layers: int, count: int, seed: int) -> list[int]:
    """`count` of the layers, whatever was measured: what a choice has to beat."""
    if rule == "random":
        return sorted(Random(seed).sample(range(layers), count))
    if rule == "even":
        return [(2 * n + 1) * layers // (2 * count) for n in range(count)]
    start = {"first": 0, "middle": (layers - count) // 2, "last": layers - count}[rule]
    return [*range(start, start + count)]


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
    for attention in model.attentions if config.init != "fresh" else ():
        if decision.experts.get(attention.layer):
            init |= {n: t for n, t in probes.experts.items() if attention.owns(n)}
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
