"""The score of a single answer, in either mode."""

from __future__ import annotations

import pytest

from cmoe.tasks.registry import score
from cmoe.tasks.scorers import Mode, Target

MODES: tuple[Mode, ...] = ("official", "strict")

both = pytest.mark.parametrize("mode", MODES)

SQUARE = "[0.00, 0.00, 0.50, 0.50]"
"""A box of Grounding: a quarter of the picture."""


def one(task: str, mode: Mode, prediction: str | None, target: Target | str) -> float:
    """The score of a single prediction; a bare string is a target's answer."""
    target = Target(target) if isinstance(target, str) else target
    (value,) = score(task, mode, [prediction], [target])
    return value
