"""A comparison that is impossible is refused with its settings."""

from __future__ import annotations

from typing import Any

import pytest

from cmoe.experiments.comparison.settings import CompareConfig


def test_a_variant_is_an_entrant_as_any_method() -> None:
    how = CompareConfig(
        "cmoe,own_only,longer",
        variants={"own_only": {"experts.top_k": 1}, "longer": {"method": "lora", "lora.rank": 2}},
        settings={"longer": {"training.steps": 9}},
    )
    assert [how.method_of(name) for name in how.names] == ["cmoe", "cmoe", "lora"]
    assert how.settings_of("own_only") == {"experts.top_k": 1}
    assert how.settings_of("longer") == {"lora.rank": 2, "training.steps": 9}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": "cmoe,magic"}, "'magic' is none; there are zero_shot, lora"),
        ({"methods": "cmoe,cmoe"}, "each once"),
        ({"seeds": ()}, "one or more"),
        ({"seeds": (1, 1)}, "each once"),
        ({"settings": {"magic": {}}}, "'magic' is none"),
        ({"candidate_tasks": 0}, "at least 1, or null"),
        ({"seeds": [1, 2], "candidate_seeds": 3}, "seeds has 2; at most as many"),
        ({"candidates": {"cmoe": [{}, {}], "lwf": [{}], "ewc": []}}, "2 of cmoe, 1 of lwf; as"),
        ({"variants": {"lora": {}}}, "'lora' is a method's name"),
        ({"variants": {"a b": {}}}, "no plain word"),
        ({"variants": {"mine": {"method": "loar"}}}, "method is 'loar'; .*the nearest is lora"),
        ({"methods": "mine"}, "'mine' is none"),
        ({"methods": "lora", "study": {"rank": {"4": {}}}}, "a study is of cmoe"),
    ],
)
def test_an_impossible_comparison_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CompareConfig(**changes)
