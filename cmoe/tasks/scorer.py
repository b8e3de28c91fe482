"""What a scorer is, and what it judges an answer by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

Mode = Literal["official", "strict"]


@dataclass(frozen=True)
class Target:
    """What a prediction is scored against.

    Attributes:
        answer: The test file's.
        size: Width and height of the picture in pixels, for boxes.
        choices: The number of a ScienceQA question's options, where known.
        answers: All reference answers, where there are several: they decide then, and `answer` is
            the first of them.
        question: What was asked, where a rule goes by it; "" if not known.
        image: The picture's file name, where a rule goes by it; "" if not known.
    """

    answer: str
    size: tuple[int, int] | None = None
    choices: int | None = None
    answers: tuple[str, ...] = ()
    question: str = ""
    image: str = ""

    @property
    def references(self) -> tuple[str, ...]:
        """All reference answers, at least one."""
        return self.answers or (self.answer,)


Rule = Callable[[str, Target], float]
"""A prediction's score in [0, 1] against its target."""

CorpusRule = Callable[[Sequence[str], Sequence[Target]], float]
"""The figure of all predictions together, 0 or more; it is no mean over them."""


@dataclass(frozen=True)
class Scorer:
    """How a task's predictions are judged, one by one; the figure is the mean of their scores.

    One published rule gives the same in both modes, and a missing prediction is wrong.

    Attributes:
        official: The rule.
    """

    official: Rule

    def rule(self, mode: Mode) -> Rule:
        """The rule of a mode.

        Raises:
            ValueError: There is no such mode.
        """
        require_mode(mode)
        return self.official


@dataclass(frozen=True)
class CoinScorer(Scorer):
    """How CoIN judges one of its tasks.

    `official` is the rule of CoIN's script.

    Attributes:
        intended: What the script means to do, where it does something else.
        by_order: Whether the script matches predictions with answers by their order, not by id.
        counts_missing: Whether the script counts a missing prediction as wrong; elsewhere its
            sample is left out.
    """

    intended: Rule | None = None
    by_order: bool = False
    counts_missing: bool = False

    def rule(self, mode: Mode) -> Rule:
        require_mode(mode)
        return self.official if mode == "official" else self._strict

    def _strict(self, prediction: str, target: Target) -> float:
        """The intended rule, after cleaning."""
        text, rule = _clean(prediction), self.intended or self.official
        return rule(text, replace(target, answer=_clean(target.answer))) if text else 0.0


@dataclass(frozen=True)
class CorpusScorer:
    """How a task's predictions are judged all together.

    The figure is no mean over samples: it has no interval of a mean, and no sample has a score. It
    is the same in both modes, and a missing prediction counts as an empty one.

    Attributes:
        figure: The rule.
        requires: What has to be installed for it: a module, and cmoe's extra that brings it.
    """

    figure: CorpusRule
    requires: tuple[str, str] | None = None


AnyScorer = Scorer | CorpusScorer


def require_mode(mode: Mode) -> None:
    """Refuse what is no mode.

    Raises:
        ValueError: Names those that there are.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"no mode {mode!r}; there are {', '.join(get_args(Mode))}")


def _clean(text: str) -> str:
    """Without surrounding white space and a final period."""
    return text.strip().removesuffix(".").rstrip()
