"""The sets of layers that a task could grow in, and what their losses say of a choice.

All sets have the same number of layers, and so of parameters; one grows in every layer at as small
a rank as gives that number, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from cmoe.evaluation.sampling_error import CONFIDENCE, share_interval
from cmoe.methods.probe import Probing, decide
from cmoe.methods.settings import ExpertsConfig, ProbeConfig, Score

DEPTHS = ("first", "middle", "last", "even")
RESAMPLES = 2000


@dataclass(frozen=True)
class LayerSet:
    """Where a task grows.

    Attributes:
        names: What chose it: a score, a depth, `rule` for the configuration's own, `greedy`, `all`;
            none for a random set that nothing else chose.
        layers: In ascending order.
        rank: Of the experts.
        drawn: Whether it is one of the random sets.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    rank: int
    drawn: bool

    @property
    def key(self) -> str:
        """Tells sets apart, and can name a file."""
        return "-".join(map(str, self.layers)) + f"-r{self.rank}"


def layer_sets(
    probing: Probing,
    greedy: Sequence[int],
    probe: ProbeConfig,
    experts: ExpertsConfig,
    *,
    count: int,
    random: int,
    costs: Sequence[int],
    beside: Sequence[int],
    seed: int,
) -> list[LayerSet]:
    """All sets of a task: those that something chose, and the random ones, each once.

    Args:
        probing: What the probes of the task measured.
        greedy: Layers in the order in which they lower the loss most.
        probe: The configuration's rule.
        experts: The experts' sizes.
        count: Layers of a set.
        random: How many to draw.
        costs: Scalars that one new expert of `experts.rank` adds to each layer.
        beside: What each layer that grows adds beside its experts, if anything.
        seed: Of the random sets.
    """
    layers = range(len(costs))
    found: dict[tuple[tuple[int, ...], int], list[str]] = {}

    def add(name: str, chosen: Sequence[int], rank: int = experts.rank) -> None:
        found.setdefault((tuple(sorted(chosen)), rank), []).append(name)

    def by(**rule: Any) -> list[int]:
        config = replace(probe, max_layers=count, max_added_parameters=None, **rule)
        return [*decide(probing, config, per_layer=1, costs=costs, seed=seed).experts]

    for score in get_args(Score):
        add(score, by(rule="relative", score=score, alpha=None))
    add("greedy", greedy[:count])
    for depth in DEPTHS:
        add(depth, by(rule=depth))
    add("rule", by())
    # Experts of rank r in every layer, for what `count` layers at the set rank add.
    budget = count * (fmean(costs) + fmean(beside or [0])) - sum(beside)
    if (rank := math.floor(experts.rank * budget / sum(costs))) >= 1:
        add("all", layers, rank)
    draw, drawn = Random(seed), set[tuple[int, ...]]()
    possible = math.comb(len(layers), count)
    while len(drawn) < min(random, possible):
        drawn.add(tuple(sorted(draw.sample(layers, count))))
    every = {
        key: LayerSet(tuple(names), *key, drawn=key[1] == experts.rank and key[0] in drawn)
        for key, names in found.items()
    }
    for chosen in sorted(drawn):
        key = (chosen, experts.rank)
        every.setdefault(key, LayerSet((), *key, drawn=True))
    return list(every.values())


# What losses say


def judged(
    rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Every named set's regret and percentile, and how well each score ranks the random sets.

    Args:
        rows: A row for each set, with `names`, `layers`, `drawn` and `loss`.
        scores: Every layer's score, by name.

    Returns:
        `best`, the lowest loss found; `chosen`, by name `loss`, `regret` (nats per answer token
        above the best), `percentile` (percent of the random sets that are worse, ties counting
        half) with its interval, and whether it `beats` them or is `beaten` beyond noise;
        `correlation`, by score Spearman's between a set's summed score and its loss, the sign
        turned, over the random sets, with its interval by resampling sets.
    """
    drawn = np.array([row["loss"] for row in rows if row["drawn"]])
    best = min(row["loss"] for row in rows)
    chosen = {}
    for row in rows:
        for name in row["names"]:
            others = drawn
            if row["drawn"]:  # it isn't compared with itself
                others = np.delete(drawn, np.flatnonzero(drawn == row["loss"])[:1])
            worse = float((others > row["loss"]).sum() + (others == row["loss"]).sum() / 2)
            low, high = share_interval(worse, len(others))
            chosen[name] = {
                "loss": row["loss"],
                "regret": row["loss"] - best,
                "percentile": 100 * worse / max(1, len(others)),
                "interval": [100 * low, 100 * high],
                "beats": low > 0.5,
                "beaten": high < 0.5,
            }
    sets = [row for row in rows if row["drawn"]]
    losses = np.array([row["loss"] for row in sets])
    correlation = {}
    for name, values in scores.items():
        summed = np.array([sum(values[layer] for layer in row["layers"]) for row in sets])
        correlation[name] = _correlated(summed, -losses)
    return {"best": best, "chosen": chosen, "correlation": correlation}


def _correlated(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, Any]:
    """Spearman's rank correlation, and its interval by resampling; null where it isn't known."""
    value = spearman(a, b)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(a), (RESAMPLES, len(a)))
    found = [v for v in (spearman(a[row], b[row]) for row in rows) if v is not None]
    if value is None or not found:
        return {"value": None, "interval": None}
    tail = (1 - CONFIDENCE) / 2
    return {"value": value, "interval": np.quantile(found, [tail, 1 - tail]).tolist()}


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Of two samples; None where one doesn't vary."""
    x, y = _ranks(a), _ranks(b)
    if len(a) < 2 or not x.std() or not y.std():
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ties share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    means: NDArray[np.float64] = ends - (counts - 1) / 2
    return means[inverse]
