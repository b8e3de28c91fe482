"""A comparison that is impossible is refused with its settings."""

from __future__ import annotations

from typing import Any

import pytest

from cmoe.experiments.comparison.settings import CompareConfig


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": "cmoe,magic"}, "'magic' is none; there are zero_shot, lora"),
        ({"methods": "cmoe,cmoe"}, "each once"),
        ({"seeds": ()}, "one or more"),
        ({"seeds": (1, 1)}, "each once"),
        ({"settings": {"magic": {}}}, "'magic' is none"),
        ({"candidate_tasks": 0}, "at least 1, or null"),
        ({"candidates": {"cmoe": [{}, {}], "lwf": [{}], "ewc": []}}, "2 of cmoe, 1 of lwf; as"),
        ({"methods": "lora", "study": {"rank": {"4": {}}}}, "a study is of cmoe"),
    ],
)
def test_an_impossible_comparison_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CompareConfig(**changes)
