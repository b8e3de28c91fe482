"""What a sweep tries, what is the same, and what wins: by definition, and by brute force."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.probings import gains

from cmoe.config.tree import RunConfig
from cmoe.experiments.sweep.settings import BudgetConfig, SearchConfig
from cmoe.experiments.sweep.space import (
    Point,
    Probed,
    Result,
    candidate,
    distinct,
    drawn,
    front,
    points,
    winner,
)
from cmoe.methods.probe import Gain, Probing, decide

RUN = RunConfig("run")
PROBING = Probing(
    older=(1, 0, 2),
    largest=((0.2, 0.8), (1.0,), (0.5, 0.3, 0.2)),
    gates=((0.2, 0.8), (1.0,), (0.5, 0.3, 0.2)),
    gains=gains(0.5, 0.1, 0.3),
    whole=Gain(0.5, 0.01),
    loss=1.0,
)
PROBED = Probed(
    PROBING, older=(1, 0, 2), widths=(100, 100, 140), hidden=16, beside=(), locator=1000
)
FIRST = Probed(None, older=(0, 0, 0), widths=(100, 100, 140), hidden=16, beside=(), locator=1000)


def point(**changes: Any) -> Point:
    values: dict[str, Any] = {"alpha": 0.5, "layers": None, "score": "frequency"}
    values |= {"per_layer": 1, "rank": 8, "init": "used"}
    return Point(**values | changes)


@st.composite
def results(draw: st.DrawFn) -> list[Result]:
    rows = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=9))
    return [Result(f"c{i}", 5.0 * a, 160, p, 1.0) for i, (a, p) in enumerate(rows)]


def test_a_candidate_adds_what_its_experts_routers_and_locator_hold() -> None:
    grown = candidate(point(per_layer=2, alpha=None, layers=1, score="loss_gain"), RUN, PROBED)
    assert grown.experts == ((0, 2),), "layer 0 has the largest gain"
    # Two experts of rank 8 on layer 0; rows for its three experts and for the older two of layer 2.
    assert grown.parameters == 2 * 8 * 100 + (3 + 2) * 16 + 1000
    first = candidate(point(), RUN, FIRST)
    assert first.experts == ((0, 1), (1, 1), (2, 1))
    assert first.init == "fresh", "there is nothing to start from"
    assert first.parameters == 8 * (100 + 100 + 140) + 3 * 16 + 1000


@given(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]), st.sampled_from(["frequency", "loss_gain"]))
def test_a_threshold_grows_what_the_rule_of_the_probe_says(alpha: float, score: Any) -> None:
    chosen = point(alpha=alpha, score=score)
    wanted = decide(PROBING, chosen.applied(RUN).probe, per_layer=1, costs=[1, 1, 1])
    assert dict(candidate(chosen, RUN, PROBED).experts) == wanted.experts


def test_the_rule_gain_has_thresholds_of_its_own() -> None:
    search = SearchConfig(alpha=(0.5,), min_gain=(0.0, 0.7), score=("frequency", "excess"))
    found = points(search, 8)
    assert [(p.score, p.alpha, p.min_gain) for p in found] == [
        ("frequency", 0.5, None),
        ("excess", 0.5, None),
        ("loss_gain", None, 0.0),
        ("loss_gain", None, 0.7),
    ]
    # The layers gain 0.5, 0.1 and 0.3, and 0.5 in all.
    assert dict(candidate(found[2], RUN, PROBED).experts) == {0: 1, 1: 1, 2: 1}
    assert dict(candidate(found[3], RUN, PROBED).experts) == {0: 1}


def test_points_that_come_to_the_same_are_one_candidate() -> None:
    search = SearchConfig(alpha=(-9.0, -8.0, 8.0, 9.0), score=("frequency", "loss_gain"))
    every = [candidate(p, RUN, PROBED) for p in points(search, 8)]
    assert len(every) == 8
    found = distinct(every)
    assert [dict(c.experts) for c in found] == [{}, {0: 1, 1: 1, 2: 1}]
    assert found[0].point == every[0].point, "the first point that came to it"
    # Ranks and starts tell candidates apart where they change what is trained.
    search = SearchConfig(alpha=(9.0,), rank=(4, 8), init=("used", "fresh"))
    assert len(distinct([candidate(p, RUN, PROBED) for p in points(search, 8)])) == 4
    assert len(distinct([candidate(p, RUN, FIRST) for p in points(search, 8)])) == 2


def test_a_budget_cuts_points_but_never_reorders_them() -> None:
    search = SearchConfig(alpha=(0.0, 1.0), per_layer=(1, 2, 3), trials=4)
    assert drawn(search, 8, "a") == points(search, 8)[:4]
    several = SearchConfig(alpha=(0.0, 1.0), per_layer=(1, 2, 3), trials=4, by="random")
    first, again, other = (drawn(several, 8, seed) for seed in ("a", "a", "b"))
    assert first == again != other
    assert set(first) <= set(points(several, 8))
    assert len(set(first)) == 4, "none twice"


@given(results())
def test_the_front_is_what_nothing_beats(found: list[Result]) -> None:
    kept = front(found)
    pairs = [(r.parameters, r.accuracy or 0.0) for r in kept]
    assert pairs == sorted(set(pairs))
    for r in found:
        beaten = any(
            o.parameters <= r.parameters
            and (o.accuracy or 0) >= (r.accuracy or 0)
            and (o.parameters, o.accuracy) != (r.parameters, r.accuracy)
            for o in found
        )
        assert ((r.parameters, r.accuracy) in pairs) != beaten


@given(results(), st.none() | st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_the_winner_is_the_smallest_that_is_as_good_as_the_best_that_fits(
    found: list[Result], limit: int | None, tolerance: float
) -> None:
    fit = [r for r in found if limit is None or r.parameters <= limit]
    if not fit:
        with pytest.raises(ValueError, match="adds at most"):
            winner(found, limit, tolerance)
        return
    best = max(r.accuracy or 0.0 for r in fit)
    error = tolerance * 100 * math.sqrt(best / 100 * (1 - best / 100) / 160)
    least = min(r.parameters for r in fit if (r.accuracy or 0.0) >= best - error - 1e-9)
    assert winner(found, limit, tolerance).parameters == least


def test_a_stopped_trial_never_wins() -> None:
    stopped = Result("a", None, 0, 1, 1.0, stopped=True)
    assert winner([stopped, Result("b", 10.0, 5, 9, 1.0)], None, 1.0).name == "b"
    assert front([stopped]) == []
    with pytest.raises(ValueError, match="came to its end"):
        winner([stopped], None, 0.0)


@given(st.lists(st.integers(0, 10**6), max_size=12), st.floats(0.05, 1.0))
def test_a_streams_budget_is_never_exceeded_and_never_runs_out(
    greed: list[int], share: float
) -> None:
    budget = BudgetConfig(total_parameters=1_000_000, share=share)
    spent = 0
    for wish in greed:
        limit = budget.limit(spent)
        assert limit is not None
        assert 0 <= limit <= 1_000_000 - spent
        if share < 1 and spent < 1_000_000 - 2 / share:
            assert limit > 0
        spent += min(wish, limit)
    assert spent <= 1_000_000
    both = BudgetConfig(parameters=10, total_parameters=1000, share=0.5)
    assert [both.limit(s) for s in (0, 985, 1000)] == [10, 7, 0]
    assert BudgetConfig().limit(10**9) is None


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"alpha": ()}, r"search.alpha is \[\], search.min_gain \[\] and"),
        ({"layers": (2,)}, "thresholds or layers need values, and not both"),
        ({"score": ()}, "search.score is empty"),
        ({"per_layer": (0,)}, r"search.per_layer is \[0\]"),
        ({"rank": (8, 0)}, r"search.rank is \[8, 0\]"),
        ({"trials": 0}, "search.trials is 0"),
        ({"gpus": -1.0}, "search.gpus is -1.0"),
        ({"tolerance": -1.0}, "search.tolerance is -1.0"),
    ],
)
def test_impossible_searches_are_refused(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        SearchConfig(**changes)


@pytest.mark.parametrize(
    "changes", [{"parameters": 0}, {"total_parameters": 0}, {"share": 0.0}, {"share": 1.5}]
)
def test_impossible_budgets_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"budget.{next(iter(changes))} is"):
        BudgetConfig(**changes)
