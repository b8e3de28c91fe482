"""Which points a sweep tries next: the grid in order, drawn from it, or proposed by Optuna."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from cmoe.experiments.sweep.settings import SearchConfig
from cmoe.experiments.sweep.space import Point, Result, drawn, points
from cmoe.methods.method import seed_of

AXES = ("per_layer", "rank", "init")
"""Fields of a point that are proposed each by itself; the others are one choice, where to grow."""


def proposals(
    search: SearchConfig, rank: int, seed: str, outcome: Callable[[Point], Result | None]
) -> Iterator[list[Point]]:
    """Points in batches; what came of a batch is asked when the next one is.

    Args:
        search: What is searched, and how.
        rank: Of experts, where none is searched.
        seed: Of what is drawn.
        outcome: Of a point of an earlier batch; None for one that had no trial.
    """
    if search.by != "optuna":
        yield drawn(search, rank, seed)
        return
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Its generator takes 32 bits.
    sampler = optuna.samplers.TPESampler(seed=seed_of(seed) % 2**32, n_startup_trials=search.batch)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    grid = points(search, rank)
    axes = {name: sorted({getattr(p, name) for p in grid}, key=str) for name in AXES}
    free: Any = dict.fromkeys(AXES)
    growths = list(dict.fromkeys(replace(p, **free) for p in grid))
    for begin in range(0, search.trials, search.batch):
        asked = [study.ask() for _ in range(min(search.batch, search.trials - begin))]
        chosen = [
            replace(
                growths[t.suggest_categorical("growth", range(len(growths)))],
                **{name: t.suggest_categorical(name, axes[name]) for name in AXES},
            )
            for t in asked
        ]
        yield chosen
        for trial, point in zip(asked, chosen, strict=True):
            result = outcome(point)
            if result is None or result.accuracy is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, [result.accuracy, result.parameters])
