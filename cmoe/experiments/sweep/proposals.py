"""Which points a sweep tries next: the grid in order, drawn from it, or proposed by Optuna."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cmoe.experiments.sweep.settings import SearchConfig
from cmoe.experiments.sweep.space import Point, Result, drawn, points
from cmoe.methods.method import seed_of

AXES = tuple(Point.__dataclass_fields__)


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
    for begin in range(0, search.trials, search.batch):
        asked = [study.ask() for _ in range(min(search.batch, search.trials - begin))]
        chosen = [
            Point(**{name: t.suggest_categorical(name, axes[name]) for name in AXES}) for t in asked
        ]
        yield chosen
        for trial, point in zip(asked, chosen, strict=True):
            result = outcome(point)
            if result is None or result.accuracy is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, [result.accuracy, result.parameters])
