"""From predictions and targets to a task's figure, and to the samples' scores where they have any.

Not every figure is a mean over samples. Who shows intervals or single samples asks `Scored.each`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cmoe.common.errors import DataError
from cmoe.tasks.scorer import (
    AnyScorer,
    CoinScorer,
    CorpusScorer,
    Mode,
    Scorer,
    Target,
    require_mode,
)


class Scored(NamedTuple):
    """What predictions are worth.

    Attributes:
        figure: In percent: the mean of the samples' scores, or 100 times a corpus scorer's figure.
        each: Every sample's score, 0 to 1; None where the figure isn't made of such.
    """

    figure: float
    each: list[float] | None


def scored_by(
    scorer: AnyScorer,
    name: str,
    mode: Mode,
    predictions: Sequence[str | None],
    targets: Sequence[Target],
) -> Scored:
    """The figure of at least one prediction; prediction `i` is scored by target `i`.

    Args:
        scorer: What judges.
        name: Of the scorer or its task, for errors.
        mode: Of CoIN's scorers; others have one rule.
        predictions: None is a missing one, and wrong.
        targets: As many.

    Raises:
        ValueError: As `scores_by`, or a figure isn't a number, 0 or more.
    """
    if isinstance(scorer, Scorer):
        each = scores_by(scorer, name, mode, predictions, targets)
        return Scored(100 * sum(each) / len(each), each)
    require_mode(mode)
    _require_pairs(name, predictions, targets)
    figure = float(scorer.figure([text or "" for text in predictions], targets))
    if not 0 <= figure < math.inf:
        raise ValueError(f"{name}: the scorer's figure is {figure}; a number, 0 or more, is needed")
    return Scored(100 * figure, None)


def scores_by(
    scorer: Scorer,
    name: str,
    mode: Mode,
    predictions: Sequence[str | None],
    targets: Sequence[Target],
) -> list[float]:
    """Each sample's score in [0, 1], in the order given. Arguments as of `scored_by`.

    Raises:
        ValueError: The mode is unknown, the lengths differ, a target can't be one, or a score is
            out of bounds.
    """
    rule = scorer.rule(mode)
    _require_pairs(name, predictions, targets)
    each = [
        0.0 if prediction is None else float(rule(prediction, target))
        for prediction, target in zip(predictions, targets, strict=True)
    ]
    for number, score in enumerate(each):
        if not 0 <= score <= 1:
            raise ValueError(
                f"{name}: the scorer gives {score} to {predictions[number]!r}; a score is from 0 "
                "to 1"
            )
    return each


def _require_pairs(name: str, predictions: Sequence[str | None], targets: Sequence[Target]) -> None:
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets in {name}")


def require_targets(scorer: AnyScorer, name: str, targets: Mapping[str, Target]) -> None:
    """Refuse targets that a scorer can't judge by, before anything is trained.

    Every target is scored with its own answer. Of CoIN's scorers those with several answers are:
    who reads rows looks at the rest. A corpus scorer is tried on the first target alone.

    Args:
        scorer: What will judge.
        name: Of the task.
        targets: By question id.

    Raises:
        DataError: Names the sample, and what is wrong with its target or with the scorer.
    """
    if isinstance(scorer, CoinScorer):
        targets = {key: target for key, target in targets.items() if target.answers}
    whole = isinstance(scorer, CorpusScorer)
    for key, target in list(targets.items())[: 1 if whole else None]:
        try:
            scored_by(scorer, name, "official", [target.answer], [target])
        except Exception as error:  # a scorer may be a stranger's
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise DataError(
                f"{name}, sample {key!r}: its scorer can't judge it: {kind}{error}"
            ) from error
