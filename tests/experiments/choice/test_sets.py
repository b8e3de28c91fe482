"""The sets of layers that are compared, and what their losses say of a choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.probings import gained

from cmoe.experiments.choice.sets import LayerSet, judged, layer_sets, spearman
from cmoe.methods.settings import ExpertsConfig, ProbeConfig

LAYERS = 8
PROBING = gained((1,) * LAYERS, 0.1, 0.5, 0.0, 0.3, 0.2, 0.9, 0.05, 0.01, error=0.02)


def made(
    count: int = 3, random: int = 10, beside: Sequence[int] = (), **probe: Any
) -> list[LayerSet]:
    rule = ProbeConfig(rule="gain", **probe)
    experts = ExpertsConfig(rank=8)
    return layer_sets(
        PROBING,
        [5, 1, 3, 4],
        rule,
        experts,
        count=count,
        random=random,
        costs=[800] * LAYERS,
        beside=beside,
        seed=3,
    )


def test_every_choice_has_as_many_layers_and_each_set_stands_once() -> None:
    sets = made()
    assert len({(s.layers, s.rank) for s in sets}) == len(sets) == len({s.key for s in sets})
    by_name = {name: s for s in sets for name in s.names}
    assert by_name["loss_gain"].layers == by_name["greedy"].layers == (1, 3, 5)
    assert by_name["rule"].layers == (1, 3, 5), "the configuration's rule, held to as many layers"
    assert by_name["first"].layers == (0, 1, 2)
    assert by_name["last"].layers == (5, 6, 7)
    assert by_name["all"].layers == tuple(range(LAYERS))
    assert by_name["all"].rank == 3, "3 layers at rank 8 are 8 layers at rank 3"
    assert all(len(s.layers) == 3 and s.rank == 8 for n, s in by_name.items() if n != "all")
    assert sum(s.drawn for s in sets) == 10
    assert sets == made(), "drawn by the seed"


def test_what_stands_beside_the_experts_counts_for_all_layers() -> None:
    """(3 x (800 + 400) - 8 x 400) / (8 x 100) = 0.5: all layers can't be had for that."""
    assert "all" not in {name for s in made(beside=[400] * LAYERS) for name in s.names}
    by_name = {name: s for s in made(beside=[200] * LAYERS) for name in s.names}
    assert by_name["all"].rank == (3 * 1000 - 8 * 200) // 800


def test_no_more_sets_are_drawn_than_there_are() -> None:
    sets = made(count=7, random=50)
    assert sum(s.drawn for s in sets) == 8
    assert all(s.drawn for s in sets if len(s.layers) == 7)
    # The rule lets two layers out whose gain is no more than its error.
    assert {s.names: len(s.layers) for s in sets if "rule" in s.names} == {("rule",): 6}


def row(loss: float, *layers: int, names: Sequence[str] = (), drawn: bool = True) -> dict[str, Any]:
    return {"names": names, "layers": layers, "drawn": drawn, "loss": loss}


def test_a_choice_is_judged_by_its_regret_and_the_random_sets_that_are_worse() -> None:
    drawn = [row(1.0 + n / 100, n % LAYERS, (n + 1) % LAYERS) for n in range(40)]
    rows = [*drawn, row(0.9, 0, 1, names=("rule",), drawn=False), row(1.2, 2, 3, names=("a", "b"))]
    rows.append(row(1.5, 4, 5, names=("bad",), drawn=False))
    said = judged(rows, {"x": list(range(LAYERS))})
    assert said["best"] == 0.9
    rule, a, bad = (said["chosen"][name] for name in ("rule", "a", "bad"))
    assert (rule["regret"], rule["percentile"], rule["beats"]) == (0, 100, True)
    assert bad["regret"] == pytest.approx(0.6)
    assert (bad["percentile"], bad["beaten"], bad["beats"]) == (0, True, False)
    # A drawn set isn't compared with itself; the drawn one that is as good counts half.
    assert a["percentile"] == pytest.approx(100 * (19 + 0.5) / 40)
    assert not a["beats"]
    assert not a["beaten"]
    assert said["chosen"]["b"] == a


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(7)))
def test_rank_correlation_without_ties_is_spearmans_formula(order: list[int]) -> None:
    a, b = np.arange(7.0), np.array(order, float)
    wanted = 1 - 6 * float(((a - b) ** 2).sum()) / (7 * (49 - 1))
    assert spearman(a, b) == pytest.approx(wanted)
    assert spearman(np.exp(a), b**3) == pytest.approx(wanted), "ranks alone count"


def test_rank_correlation_with_ties_shares_ranks() -> None:
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)."""
    found = spearman(np.array([0.0, 1, 1, 2]), np.array([0.0, 1, 2, 3]))
    assert found == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert spearman(np.zeros(3), np.arange(3.0)) is None


def test_a_score_that_ranks_the_sets_right_correlates_fully() -> None:
    rng = np.random.default_rng(0)
    layers = [tuple(sorted(rng.choice(LAYERS, 3, replace=False).tolist())) for _ in range(25)]
    good = rng.random(LAYERS)
    rows = [row(3.0 - float(good[list(chosen)].sum()), *chosen) for chosen in layers]
    scores = {"good": good.tolist(), "bad": (-good).tolist(), "flat": [1.0] * LAYERS}
    found = judged(rows, scores)["correlation"]
    assert found["good"]["value"] == pytest.approx(1)
    assert found["bad"]["interval"] == pytest.approx([-1, -1])
    assert found["flat"]["value"] is None
