"""What a sweep searches, which points of it are the same, and which result wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Any, Literal

from cmoe.config import RunConfig
from cmoe.methods.probe import Probing, decide
from cmoe.methods.settings import Score

Init = Literal["used", "probe", "fresh"]


@dataclass(frozen=True)
class SearchConfig:
    """The points that are tried for every task, and how.

    Attributes:
        alpha: Thresholds (`probe.alpha`); give these or `layers`.
        layers: Numbers of layers, those of the highest scores.
        score: Of `frequency`, `excess`, `loss_gain`, `random`.
        per_layer: New experts in a layer that grows.
        rank: Of the experts; none takes `experts.rank`.
        init: Of `used`, `probe`, `fresh`.
        by: `grid` tries the points in order, `random` draws them, `optuna` lets its multi-objective
            TPE propose them, a batch after the other.
        trials: Points for every task at most. Those that come to the same layers, counts, rank and
            start are one candidate, trained once.
        batch: With `optuna`: points proposed from what is known by then.
        tolerance: Standard errors below the best accuracy that still count as equal to it: of
            equals the smallest growth wins. 0 takes the best itself.
        scheduler: `asha` ends the trials that lag behind at a checkpoint, by their loss on the
            selection split; `fifo` lets all end.
        cpus: CPU cores of a trial.
        gpus: GPUs of a trial, whole or a part; null takes one where the cluster has any.
    """

    alpha: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5)
    layers: tuple[int, ...] = ()
    score: tuple[Score, ...] = ("frequency",)
    per_layer: tuple[int, ...] = (1,)
    rank: tuple[int, ...] = ()
    init: tuple[Init, ...] = ("used",)
    by: Literal["grid", "random", "optuna"] = "grid"
    trials: int = 8
    batch: int = 4
    tolerance: float = 0.0
    scheduler: Literal["fifo", "asha"] = "fifo"
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        for name in ("score", "per_layer", "init"):
            if not getattr(self, name):
                raise ValueError(f"search.{name} is empty; at least one value is needed")
        if bool(self.alpha) == bool(self.layers):
            raise ValueError(
                f"search.alpha is {list(self.alpha)} and search.layers {list(self.layers)}; one of "
                "them needs values, and only one"
            )
        for name in ("layers", "per_layer", "rank"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"search.{name} is {list(getattr(self, name))}; each at least 1")
        for name in ("trials", "batch", "cpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"search.{name} is {getattr(self, name)}; at least 1")
        for name in ("gpus", "tolerance"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"search.{name} is {value}; at least 0")


@dataclass(frozen=True)
class BudgetConfig:
    """How much may be added; experts, routers and locator count.

    Attributes:
        parameters: Scalars for each task; null sets no limit.
        total_parameters: Scalars for the whole stream. A task gets at most `share` of what the
            tasks before it have left: no future task needs to be known, and none finds nothing.
        share: See `total_parameters`.
    """

    parameters: int | None = None
    total_parameters: int | None = None
    share: float = 0.25

    def __post_init__(self) -> None:
        for name in ("parameters", "total_parameters"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"budget.{name} is {value}; at least 1, or null")
        if not 0 < self.share <= 1:
            raise ValueError(f"budget.share is {self.share}; more than 0 and at most 1")

    def limit(self, spent: int) -> int | None:
        """Scalars that the next task may add when those before it have added `spent`."""
        limits = [] if self.parameters is None else [self.parameters]
        if self.total_parameters is not None:
            limits.append(math.floor(self.share * (self.total_parameters - spent)))
        return min(limits, default=None)


@dataclass(frozen=True)
class BranchConfig:
    """One more task for a log that is there, instead of a stream from its beginning.

    Attributes:
        task: One of `data.tasks` that the log hasn't learned. Its winner is committed to the log.
        store: Folder of the log, for example `runs/coin_mini/store`.
    """

    task: str | None = None
    store: str | None = None

    def __post_init__(self) -> None:
        if (self.task is None) != (self.store is None):
            raise ValueError(
                f"task is {self.task!r} and store {self.store!r}; a task is added to a store: give "
                "both, or neither for a whole stream"
            )


@dataclass(frozen=True)
class Point:
    """One choice of every setting that is searched; `alpha` or `layers` is None."""

    alpha: float | None
    layers: int | None
    score: Score
    per_layer: int
    rank: int
    init: Init

    def applied(self, config: RunConfig) -> RunConfig:
        """The run with this choice."""
        layers = config.probe.max_layers if self.layers is None else self.layers
        probe = replace(
            config.probe, alpha=self.alpha, score=self.score, init=self.init, max_layers=layers
        )
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
        locator: Scalars of the task's locator entry.
    """

    probing: Probing | None
    older: tuple[int, ...]
    widths: tuple[int, ...]
    hidden: int
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
    where: Sequence[Any] = search.alpha or search.layers
    return [
        Point(a if search.alpha else None, None if search.alpha else a, score, count, r, init)
        for score, count, r, init, a in product(
            search.score, search.per_layer, ranks, search.init, where
        )
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
        decision = decide(found.probing, chosen.probe, per_layer=point.per_layer, costs=costs)
        experts, init = dict(decision.experts), point.init
    rows = sum(
        found.older[n] + experts.get(n, 0) for n in layers if found.older[n] or experts.get(n)
    )
    weights = sum(point.rank * found.widths[n] * count for n, count in experts.items())
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
