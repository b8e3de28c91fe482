"""Every run of a comparison as a configuration, and what is refused before any starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cmoe.common.errors import RunError
from cmoe.config.tree import RunConfig
from cmoe.experiments.comparison.runs import candidate, of_method, require_possible, slug
from cmoe.experiments.comparison.settings import CompareConfig

CONFIG = RunConfig("all", runs="there")


def test_a_method_runs_in_the_comparisons_folder_with_its_own_settings() -> None:
    one = of_method(CONFIG, "ewc", {"ewc.weight": 7, "lora.rank": 3}, "ewc-4", 4)
    assert (one.url, one.method, one.seed) == ("there/all/ewc-4", "ewc", 4)
    assert (one.ewc.weight, one.lora.rank) == (7.0, 3)
    assert one.training == CONFIG.training


def test_a_variants_run_has_its_name_and_its_methods_program() -> None:
    how = CompareConfig(
        "twice", variants={"twice": {"method": "lora", "lora.rank": 2}}, candidates={"twice": [{}]}
    )
    config = replace(CONFIG, data=replace(CONFIG.data, selection=0.5))
    require_possible(config, how)
    run = candidate(config, how, "twice", 0, 3)
    assert (run.name, run.method, run.lora.rank) == ("tune-twice-0-3", "lora", 2)
    wrong = replace(how, variants={"twice": {"method": "lora", "lora.rank": 0}})
    with pytest.raises(RunError, match=r"method twice: .*lora.rank is 0"):
        require_possible(config, wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"lora": {"lora.size": 3}}}, "method lora: .*lora.size"),
        ({"settings": {"lora": {"lora.rank": 0}}}, "method lora: .*lora.rank is 0"),
        ({"candidates": {"lora": [{"training.zero": 7}]}}, "method lora: .*zero"),
        ({"candidates": {"lora": [{"lora.rank": 3}]}}, "data.selection is 0"),
        ({"methods": "cmoe", "study": {"a": {"b": {"experts.rank": "x"}}}}, "method cmoe: .*rank"),
    ],
)
def test_settings_are_refused_before_anything_starts(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError, match=said):
        require_possible(CONFIG, CompareConfig(**({"methods": "lora"} | changes)))


def test_labels_name_folders_and_each_its_own() -> None:
    assert slug("All layers, r/2") == "all-layers-r-2"
    assert slug("-0.5") != slug("0.5")
    how = CompareConfig("cmoe", study={"a": {"x y": {}, "x/y": {}}})
    with pytest.raises(RunError, match=r"two labels .* study-a-x-y"):
        require_possible(CONFIG, how)
