"""All scorers by name: CoIN's, the published ones, and those of installed packages.

A package names a function in its entry points, and it is a scorer of that name everywhere:

    [project.entry-points."cmoe.scorers"]
    my_score = "my_package:score"

A package that can't be used changes nothing; `problems` says why, and no run starts with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Any, TypeVar

from cmoe.common.nearest import unknown
from cmoe.common.packages import CMOE, Packages, RegistryError, lacking
from cmoe.tasks.benchmark_scorers import (
    dcl_choice,
    dcl_contains,
    dcl_science,
    dcl_words,
    edit_similarity,
)
from cmoe.tasks.caption_scorers import bleu4, cider
from cmoe.tasks.published_scorers import anls, choice, contains, exact, iou, relaxed
from cmoe.tasks.scorer import AnyScorer, CorpusScorer, Scorer, Target
from cmoe.tasks.scorers import SCORERS
from cmoe.tasks.soft_accuracy import vqa

GROUP = "cmoe.scorers"
"""Of a package's entry points."""

Function = TypeVar("Function", bound=Callable[..., float])


@dataclass(frozen=True)
class _Entry:
    scorer: AnyScorer
    function: Callable[..., Any] | None
    package: str


_PUBLISHED: Mapping[str, AnyScorer] = {
    "exact": Scorer(exact),
    "contains": Scorer(contains),
    "choice": Scorer(choice),
    "vqa": Scorer(vqa),
    "anls": Scorer(anls),
    "relaxed": Scorer(relaxed),
    "iou": Scorer(iou),
    "edit_similarity": Scorer(edit_similarity),
    "dcl_words": Scorer(dcl_words),
    "dcl_contains": Scorer(dcl_contains),
    "dcl_science": Scorer(dcl_science),
    "dcl_choice": Scorer(dcl_choice),
    "cider": CorpusScorer(cider),
    "bleu4": CorpusScorer(bleu4, requires=("sacrebleu", "captions")),
}
_ENTRIES = {name: _Entry(scorer, None, CMOE) for name, scorer in {**SCORERS, **_PUBLISHED}.items()}


def register_scorer(name: str, *, corpus: bool = False) -> Callable[[Function], Function]:
    """Register a function as the scorer of a name, a decorator.

    It is called with a prediction and its `Target`, and gives the sample's score, 0 to 1. A task's
    figure is the mean. Both modes give the same, and a missing prediction is wrong.

    Args:
        name: What a task names.
        corpus: The function is called with all predictions and all targets, and gives the figure of
            them together. Samples have no scores then, and the figure has no interval.

    Raises:
        RegistryError: The name is taken, or the function can't be called so.
    """

    def register(function: Function) -> Function:
        _register(name, function, CMOE, corpus=corpus)
        return function

    return register


def _register(name: str, function: Callable[..., float], package: str, *, corpus: bool) -> None:
    if name in _ENTRIES:
        raise RegistryError(f"scorer {name!r} is there already, from {_ENTRIES[name].package}")
    sample: tuple[Any, Any] = ("", Target(""))
    try:
        inspect.signature(function).bind(*([each] if corpus else each for each in sample))
    except TypeError as error:
        what = "all predictions and all targets" if corpus else "a prediction and its target"
        raise RegistryError(
            f"scorer {name!r}: must be a function that takes {what}: {error}"
        ) from error
    scorer = CorpusScorer(function) if corpus else Scorer(function)
    _ENTRIES[name] = _Entry(scorer, function, package)


def _load(package: str, point: EntryPoint) -> None:
    function = point.load()
    if point.name in _ENTRIES and _ENTRIES[point.name].function is function:
        return  # the module has registered it itself
    _register(point.name, function, package, corpus=False)


_PACKAGES = Packages(GROUP, _ENTRIES, _load)
problems = _PACKAGES.problems
"""Load the packages that bring scorers, once; a sentence on each that can't be used."""


def scorers() -> Mapping[str, AnyScorer]:
    """All scorers by name, CoIN's first."""
    problems()
    return MappingProxyType({name: entry.scorer for name, entry in _ENTRIES.items()})


def scorer_named(name: str) -> AnyScorer:
    """The scorer of a name.

    Raises:
        ValueError: There is none; says which there are, and the nearest.
    """
    if name not in _ENTRIES and name not in scorers():
        raise ValueError("; ".join([f"no scorer {name!r}; {unknown(name, _ENTRIES)}", *problems()]))
    return _ENTRIES[name].scorer


def lacks(name: str) -> str | None:
    """What has to be installed for a scorer, as a sentence; None where it can be used."""
    scorer = scorer_named(name)
    if isinstance(scorer, CorpusScorer) and scorer.requires is not None:
        module, extra = scorer.requires
        return lacking(module, module, extra)
    return None
