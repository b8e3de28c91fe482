"""What a sweep searches, which points of it are the same, and which result wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Any

from cmoe.config.tree import RunConfig
from cmoe.experiments.sweep.settings import SearchConfig
from cmoe.methods.probe import Probing, decide
from cmoe.methods.settings import Init, ProbeConfig, Score


@dataclass(frozen=True)
class Point:
    """One choice of every setting that is searched; of `alpha`, `layers`, `min_gain` one is set."""

    alpha: float | None
    layers: int | None
    score: Score
    per_layer: int
    rank: int
    init: Init
    min_gain: float | None = None

    def rule(self, probe: ProbeConfig) -> ProbeConfig:
        """What decides by this choice: `probe.rule gain` with `min_gain`, else `relative`."""
        if self.min_gain is not None:
            return replace(probe, rule="gain", min_gain=self.min_gain)
        layers = probe.max_layers if self.layers is None else self.layers
        return replace(
            probe, rule="relative", alpha=self.alpha, score=self.score, max_layers=layers
        )

    def applied(self, config: RunConfig) -> RunConfig:
        """The run with this choice."""
        probe = replace(self.rule(config.probe), init=self.init)
        experts = replace(config.experts, per_layer=self.per_layer, rank=self.rank)
        return replace(config, probe=probe, experts=experts)


@dataclass(frozen=True)
class Probed:
    """What the probe run of a task found; the same for every point.

    Attributes:
        probing: What was measured; None for a first task, which grows in every layer.
        older: Experts of each layer before this task.
        widths: Of each layer, the widths in and out of its FFN's maps, summed.
        hidden: Width of the layers' input.
        beside: Scalars that each layer which grows adds beside its experts, if any.
        locator: Scalars of the task's locator entry.
    """

    probing: Probing | None
    older: tuple[int, ...]
    widths: tuple[int, ...]
    hidden: int
    beside: tuple[int, ...]
    locator: int


@dataclass(frozen=True)
class Candidate:
    """A growth that points come to.

    Attributes:
        experts: New experts by layer.
        rank: Of the experts.
        init: What they start from; `fresh` for a first task.
        parameters: Scalars that the task then adds: experts, routers and locator.
        point: The first point that came to it.
    """

    experts: tuple[tuple[int, int], ...]
    rank: int
    init: str
    parameters: int
    point: Point

    @property
    def name(self) -> str:
        """Tells candidates apart, and can name a folder."""
        grown = "+".join(f"{layer}x{count}" for layer, count in self.experts) or "none"
        return f"{grown}-r{self.rank}-{self.init}"


@dataclass(frozen=True)
class Result:
    """What came of a candidate.

    Attributes:
        name: The candidate's.
        accuracy: Percent of the selection split, by the task's own router.
        samples: Of the selection split.
        parameters: Scalars added.
        seconds: Of the trial.
        stopped: Whether the scheduler ended it before its training did; its accuracy is None.
    """

    name: str
    accuracy: float | None
    samples: int
    parameters: int
    seconds: float
    stopped: bool = False


def points(search: SearchConfig, rank: int) -> list[Point]:
    """The whole grid, in order.

    Args:
        search: What is searched.
        rank: Of experts, where none is searched.
    """
    ranks = search.rank or (rank,)
    # By `gain` the loss decides, whatever the scores.
    growths: list[dict[str, Any]] = [
        {"score": score, "alpha": None, "layers": None, key: value}
        for score in search.score
        for key in ("alpha", "layers")
        for value in getattr(search, key)
    ]
    growths += [
        {"score": "loss_gain", "alpha": None, "layers": None, "min_gain": value}
        for value in search.min_gain
    ]
    return [
        Point(per_layer=count, rank=r, init=init, **growth)
        for count, r, init, growth in product(search.per_layer, ranks, search.init, growths)
    ]


def drawn(search: SearchConfig, rank: int, seed: str) -> list[Point]:
    """The first points of the grid, or as many drawn from it without repeating one."""
    every = points(search, rank)
    if search.by == "random":
        Random(seed).shuffle(every)
    return every[: search.trials]


def candidate(point: Point, config: RunConfig, found: Probed) -> Candidate:
    """What a point comes to, given what the probes found."""
    chosen = point.applied(config)
    layers = range(len(found.older))
    costs = [point.rank * found.widths[n] + found.hidden for n in layers]
    if found.probing is None or not chosen.probe.enabled:
        experts, init = dict.fromkeys(layers, point.per_layer), "fresh"
    else:
        decision = decide(
            found.probing,
            chosen.probe,
            per_layer=point.per_layer,
            costs=costs,
            beside=found.beside,
        )
        experts, init = dict(decision.experts), point.init
    rows = sum(
        found.older[n] + experts.get(n, 0) for n in layers if found.older[n] or experts.get(n)
    )
    grown = [n for n, count in experts.items() if count]
    weights = sum(point.rank * found.widths[n] * experts[n] for n in grown)
    weights += sum(sum(found.beside[n : n + 1]) for n in grown)
    parameters = weights + rows * found.hidden + found.locator
    return Candidate(tuple(sorted(experts.items())), point.rank, init, parameters, point)


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each growth once, in the order in which it first appears."""
    return list({c.name: c for c in reversed(candidates)}.values())[::-1]


def front(results: Sequence[Result]) -> list[Result]:
    """Results that no other beats in accuracy without adding more, by parameters."""
    best, out = -math.inf, []
    for result in sorted(
        (r for r in results if r.accuracy is not None),
        key=lambda r: (r.parameters, -(r.accuracy or 0.0), r.name),
    ):
        if result.accuracy is not None and result.accuracy > best:
            best = result.accuracy
            out.append(result)
    return out


def winner(results: Sequence[Result], limit: int | None, tolerance: float) -> Result:
    """The smallest growth that is as good as the best that fits the budget.

    As good: not more than `tolerance` standard errors of the best one's accuracy below it; 1 is the
    one-standard-error rule of Breiman et al. (1984).

    Raises:
        ValueError: None has an accuracy and fits.
    """
    fit = [r for r in front(results) if limit is None or r.parameters <= limit]
    if not fit:
        raise ValueError(f"no candidate that came to its end adds at most {limit} parameters")
    best = fit[-1]
    share = (best.accuracy or 0.0) / 100
    error = tolerance * 100 * math.sqrt(share * (1 - share) / best.samples)
    return next(r for r in fit if (r.accuracy or 0.0) >= (best.accuracy or 0.0) - error)
