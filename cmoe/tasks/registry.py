"""The tasks that can be judged, and the scorer of each by its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cmoe.common.nearest import unknown
from cmoe.tasks.scorers import SCORERS, Mode, Scorer, Target

_SCORERS: dict[str, str] = {}


def register_task(name: str, *, scorer: str) -> None:
    """Register a task: its predictions are judged by the scorer of that name.

    Raises:
        ValueError: The task has another scorer, or there is no such scorer.
    """
    if scorer not in SCORERS:
        raise ValueError(f"task {name!r} has scorer {scorer!r}; {unknown(scorer, SCORERS)}")
    if _SCORERS.setdefault(name, scorer) != scorer:
        raise ValueError(f"task {name!r} is there already, with scorer {_SCORERS[name]!r}")


# CoIN's, in its order.
register_task("ScienceQA", scorer="choice")
register_task("TextVQA", scorer="vqa")
register_task("ImageNet", scorer="class_name")
register_task("GQA", scorer="lower_case")
register_task("VizWiz", scorer="upper_case")
register_task("Grounding", scorer="box")
register_task("VQAv2", scorer="upper_case")
register_task("OCRVQA", scorer="ocr")


def tasks() -> tuple[str, ...]:
    """The names of all registered tasks."""
    return tuple(_SCORERS)


def scorer_of(task: str) -> Scorer:
    """What judges a task.

    Raises:
        ValueError: Nothing does; names the tasks that there are, and the nearest.
    """
    if task not in _SCORERS:
        raise ValueError(f"no scorer for task {task!r}; {unknown(task, _SCORERS)}")
    return SCORERS[_SCORERS[task]]


def require_known(names: Iterable[str], key: str) -> None:
    """Refuse tasks that nothing could score.

    Args:
        names: Of tasks.
        key: Where they are asked for.

    Raises:
        ValueError: Names one, and those that there are.
    """
    for task in names:
        if task not in _SCORERS:
            raise ValueError(
                f"{key} names {task!r}, which has no scorer; {unknown(task, _SCORERS)}"
            )


def score(
    task: str, mode: Mode, predictions: Sequence[str | None], targets: Sequence[Target]
) -> list[float]:
    """Each sample's score in [0, 1], in the order given; prediction `i` is scored by target `i`.

    None is a missing prediction, and wrong. CoIN's own scripts count a missing one in ScienceQA
    only and elsewhere divide by the predictions there are: for that, leave the sample out.

    Raises ValueError for an unknown task or mode, for different lengths, and for a target that
    cannot be one: a box without four numbers, human answers other than ten.
    """
    rule = scorer_of(task).rule(mode)
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets in {task}")
    return [
        0.0 if prediction is None else float(rule(prediction, target))
        for prediction, target in zip(predictions, targets, strict=True)
    ]
