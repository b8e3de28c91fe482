"""The tasks that can be judged, and the scorer of each by its name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from cmoe.common.nearest import unknown
from cmoe.data.samples import Task
from cmoe.data.settings import SCORERS, DataConfig
from cmoe.tasks.scorer import AnyScorer, CorpusScorer, Mode, Target
from cmoe.tasks.scorer_registry import lacks, scorer_named
from cmoe.tasks.scoring import Scored, scored_by, scores_by

_SCORERS = SCORERS


def register_task(name: str, *, scorer: str) -> None:
    """Register a task: its predictions are judged by the scorer of that name.

    Raises:
        ValueError: The task has another scorer, or there is no such scorer.
    """
    try:
        scorer_named(scorer)
    except ValueError as error:
        raise ValueError(f"task {name!r}: {error}") from error
    if _SCORERS.setdefault(name, scorer) != scorer:
        raise ValueError(f"task {name!r} is there already, with scorer {_SCORERS[name]!r}")


def tasks() -> tuple[str, ...]:
    """The names of all registered tasks."""
    return tuple(_SCORERS)


def scorer_name(task: str) -> str:
    """The name of what judges a task.

    Raises:
        ValueError: Nothing does; names the tasks that there are, and the nearest.
    """
    if task not in _SCORERS:
        raise ValueError(f"no scorer for task {task!r}; {unknown(task, _SCORERS)}")
    return _SCORERS[task]


def judged_by(task: Task) -> str:
    """The name of what judges a stream's task: its own, or the one that is registered.

    Raises:
        ValueError: As `scorer_name`.
    """
    return task.scorer or scorer_name(task.name)


def scorer_of(task: str) -> AnyScorer:
    """What judges a task.

    Raises:
        ValueError: As `scorer_name`.
    """
    return scorer_named(scorer_name(task))


def require_known(names: Iterable[str], key: str, own: Collection[str] = ()) -> None:
    """Refuse tasks that nothing could score.

    Args:
        names: Of tasks.
        key: Where they are asked for.
        own: Names of the user's own tasks, which bring their scorers.

    Raises:
        ValueError: Names one, and those that there are; or a task whose scorer lacks a package.
    """
    for task in names:
        if task in own:
            continue
        if task not in _SCORERS:
            known = [*_SCORERS, *own]
            raise ValueError(f"{key} names {task!r}, which has no scorer; {unknown(task, known)}")
        if (lack := lacks(_SCORERS[task])) is not None:
            raise ValueError(f"{key} names {task!r}, whose scorer is {_SCORERS[task]}: {lack}")


def require_judged(data: DataConfig) -> None:
    """Refuse a stream with tasks that nothing could score, and own tasks whose scorer isn't there.

    Raises:
        ValueError: As `require_known`; or names the task of `data.own`.
    """
    for name, own in data.own.items():
        key = f"data.own.{name}.scorer is {own.scorer!r}"
        try:
            lack = lacks(own.scorer)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        if lack is not None:
            raise ValueError(f"{key}, and {lack}")
    require_known(data.tasks, "data.tasks", data.own)


def score(
    task: str, mode: Mode, predictions: Sequence[str | None], targets: Sequence[Target]
) -> list[float]:
    """Each sample's score in [0, 1], in the order given; prediction `i` is scored by target `i`.

    None is a missing prediction, and wrong. CoIN's own scripts count a missing one in ScienceQA
    only and elsewhere divide by the predictions there are: for that, leave the sample out.

    Raises ValueError for an unknown task or mode, for different lengths, for a target that cannot
    be one (a box without four numbers, human answers other than ten), and where the task's figure
    isn't made of samples' scores.
    """
    scorer = scorer_of(task)
    if isinstance(scorer, CorpusScorer):
        raise ValueError(f"{scorer_name(task)} judges all of {task} together, and no sample alone")
    return scores_by(scorer, task, mode, predictions, targets)


def scored(
    task: Task, mode: Mode, predictions: Sequence[str | None], targets: Sequence[Target]
) -> Scored:
    """A task's figure in percent, of at least one sample, with the scores that it is the mean of.

    Raises ValueError as `score`; but a figure needn't be made of samples' scores.
    """
    return scored_by(scorer_named(judged_by(task)), task.name, mode, predictions, targets)
