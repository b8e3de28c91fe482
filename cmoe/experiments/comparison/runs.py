"""Which runs a comparison is made of, each as a configuration of its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cmoe.common.errors import RunError
from cmoe.config.changes import changed
from cmoe.config.tree import RunConfig
from cmoe.experiments.comparison.settings import STUDIED, CompareConfig


def require_possible(config: RunConfig, how: CompareConfig) -> None:
    """Refuse settings that some run would be refused for, before any is started.

    Raises:
        RunError: Names the method and the key.
    """
    for method in how.names:
        settings = how.settings_of(method)
        more = [*how.candidates.get(method, [])]
        if method == STUDIED:
            more += [one for group in how.study.values() for one in group.values()]
        for chosen in (settings, *(settings | one for one in more)):
            try:
                of_method(config, how.method_of(method), chosen, method, how.seeds[0])
            except ValueError as error:
                raise RunError(f"method {method}: {error}") from error
    names = Counter(study_name(group, label) for group in how.study for label in how.study[group])
    if twice := [name for name, count in names.items() if count > 1]:
        raise RunError(f"study: two labels would name the same folder, {twice[0]}")
    if any(how.candidates.get(method) for method in how.names) and not config.data.selection:
        raise RunError("data.selection is 0; candidates are judged on it: try 0.1")


def of_method(
    config: RunConfig, method: str, settings: Mapping[str, Any], name: str, seed: int
) -> RunConfig:
    """A run of a method, or of a variant of one, in the comparison's folder."""
    own = {"method": method, "name": name, "runs": config.url, "seed": seed}
    return changed(config, {**settings, **own})


def candidate(
    config: RunConfig, how: CompareConfig, method: str, number: int, seed: int
) -> RunConfig:
    """A stream that one of a method's candidates is judged by."""
    settings = how.settings_of(method) | how.candidates[method][number]
    name = f"tune-{method}-{number}-{seed}"
    run = of_method(config, how.method_of(method), settings, name, seed)
    tasks = config.data.tasks[: how.candidate_tasks]
    return replace(run, data=replace(run.data, tasks=tasks, evaluate_on="selection"))


def study_name(group: str, label: str) -> str:
    """Of the runs of a study's variant, but for the seed."""
    return f"study-{slug(group)}-{slug(label)}"


def slug(text: str) -> str:
    """A text as part of a folder's name."""
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower())
