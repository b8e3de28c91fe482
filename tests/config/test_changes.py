"""A run with other settings, and where two runs differ."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from support.configurations import (
    LEAVES,
    as_flags,
    get,
    plain,
    runs,
)

from cmoe.config.changes import changed
from cmoe.config.parse import parse
from cmoe.folder import differences


@settings(max_examples=8, deadline=None)
@given(before=runs(), after=runs())
def test_changed_settings_are_those_of_the_command_line(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    run = parse(as_flags(before))
    kept = run.as_dict()
    assert changed(run, after) == parse([*as_flags(before), *as_flags(after)])
    assert changed(run, {}) == run
    assert run.as_dict() == kept


@pytest.mark.parametrize(
    "key",
    [
        *("probe.alhpa", "alpha", "probes.alpha", "", "probe.", ".alpha", "config"),
        # Below a value there is nothing, whatever the value is.
        *("probe.alpha.x", "training.steps.x", "seed.x", "name.x", "data.tasks.GQA"),
    ],
)
def test_a_change_of_an_unknown_key_is_refused(key: str) -> None:
    run = parse(["--name", "x", "--data.tasks", '["GQA"]'])
    with pytest.raises(ValueError, match="unknown key") as refused:
        changed(run, {"seed": 1, key: 1})
    assert repr(key) in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.steps", 0),
        ("training.steps", "many"),
        ("training.steps", 1.5),
        ("training.zero", 4),
        ("training", 3),
        ("method", "gem"),
        ("experts.rank", 0),
        ("data.tasks", "GQA"),
        ("cluster.min_workers", 3),
        ("name", "a/b"),
    ],
)
def test_a_change_to_an_impossible_value_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(key)):
        changed(parse(["--name", "x"]), {key: value})


# What two runs differ in


@settings(max_examples=12, deadline=None)
@given(before=runs(), after=runs())
def test_differences_name_what_changes_the_outcome(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    a, b = parse(as_flags(before)), parse(as_flags(after))
    changed = {key for key in LEAVES if get(a, key) != get(b, key)}
    found = differences(a.as_dict(), b.as_dict())
    where = ("runs", "cluster", "trackers", "wandb", "mlflow")
    neutral = {key for key in changed if key.partition(".")[0] in where}
    assert {line.partition(":")[0] for line in found} == changed - neutral
    assert len(found) == len(changed - neutral)
    for line in found:
        key, _, said = line.partition(": ")
        assert said == f"{plain(get(a, key))!r} -> {plain(get(b, key))!r}"
    assert differences(a.as_dict(), json.loads(json.dumps(a.as_dict()))) == []


def test_a_key_that_one_side_lacks_is_a_difference() -> None:
    run = parse(["--name", "x"]).as_dict()
    older = {**run, "probe": {n: v for n, v in run["probe"].items() if n != "alpha"}}
    (line,) = differences(older, run)
    assert line.startswith("probe.alpha: None -> 0.5")
    (line,) = differences(run, older)
    assert line.startswith("probe.alpha: 0.5 -> None")
