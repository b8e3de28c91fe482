"""What is tried next: each way keeps to the grid and to the number of trials."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cmoe.experiments.sweep.proposals import proposals
from cmoe.experiments.sweep.settings import SearchConfig
from cmoe.experiments.sweep.space import Point, Result, points

SEARCH = SearchConfig(alpha=(-1.0, 0.0, 1.0), score=("frequency", "loss_gain"), rank=(4, 8))
RANK = 16


def outcome(point: Point) -> Result | None:
    """The larger alpha the better; ranks of 8 had no trial, and one that was stopped has no end."""
    if point.rank == 8:
        return None
    assert point.alpha is not None
    stopped = point.alpha < 0
    return Result("x", None if stopped else 50 + point.alpha, 10, 100, 1.0, stopped)


def batches(**changes: Any) -> list[list[Point]]:
    search = replace(SEARCH, **changes)
    return list(proposals(search, RANK, "seed", outcome))


def test_the_grid_is_tried_in_order() -> None:
    assert batches(by="grid", trials=5) == [points(SEARCH, RANK)[:5]]
    assert batches(by="grid", trials=99) == [points(SEARCH, RANK)]


def test_points_are_drawn_once_each_and_the_same_for_a_seed() -> None:
    (drawn,) = batches(by="random", trials=7)
    assert len(set(drawn)) == 7
    assert set(drawn) <= set(points(SEARCH, RANK))
    assert drawn != points(SEARCH, RANK)[:7]
    assert batches(by="random", trials=7) == [drawn]


def test_optuna_proposes_one_rule_at_a_time() -> None:
    search = replace(SEARCH, min_gain=(0.0, 0.1), rank=(4,))
    found = {
        p
        for batch in proposals(replace(search, by="optuna", trials=16), RANK, "x", lambda _: None)
        for p in batch
    }
    assert found <= set(points(search, RANK))
    assert {p.min_gain is None for p in found} == {True, False}


def test_optuna_proposes_points_of_the_grid_in_batches() -> None:
    found = batches(by="optuna", trials=10, batch=4)
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert {point for batch in found for point in batch} <= set(points(SEARCH, RANK))
    assert batches(by="optuna", trials=10, batch=4) == found, "the same seed"
