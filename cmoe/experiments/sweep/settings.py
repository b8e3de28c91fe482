"""What a sweep can be told: sections beside the run's own.

Nothing heavy is imported here, as in any room's settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cmoe.common.bounds import require
from cmoe.methods.settings import Init, Score


@dataclass(frozen=True)
class SearchConfig:
    """The points that are tried for every task, and how.

    Attributes:
        alpha: Thresholds of the rule `relative` (`probe.alpha`).
        min_gain: Thresholds of the rule `gain` (`probe.min_gain`).
        layers: Numbers of layers, those of the highest scores, instead of thresholds.
        score: Of `frequency`, `excess`, `loss_gain`.
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
    min_gain: tuple[float, ...] = ()
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
        if bool(self.alpha or self.min_gain) == bool(self.layers):
            raise ValueError(
                f"search.alpha is {list(self.alpha)}, search.min_gain {list(self.min_gain)} and "
                f"search.layers {list(self.layers)}; thresholds or layers need values, and not both"
            )
        for name in ("layers", "per_layer", "rank"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"search.{name} is {list(getattr(self, name))}; each at least 1")
        if any(value < 0 for value in self.min_gain):
            raise ValueError(f"search.min_gain is {list(self.min_gain)}; each at least 0")
        require(self, "search", "trials", "batch", "cpus", least=1)
        require(self, "search", "gpus", "tolerance", least=0)


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
        require(self, "budget", "parameters", "total_parameters", least=1)
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
