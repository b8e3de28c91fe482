"""What is kept of long curves and of many scores; the whole is seen by the tests of its page."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmoe.evaluation.predictions import Stage
from cmoe.evaluation.report_data import CURVE_POINTS, location_scores, loss_curve

SCORES = st.floats(-100, 100)


@given(st.integers(1, 5 * CURVE_POINTS))
def test_a_curve_keeps_its_mean_in_few_points(steps: int) -> None:
    losses = [float(n % 7) for n in range(steps)]
    curve = loss_curve(losses)
    assert len(curve["means"]) <= CURVE_POINTS
    assert curve["span"] * (len(curve["means"]) - 1) < steps <= curve["span"] * len(curve["means"])
    begin = curve["span"] * (len(curve["means"]) - 1)
    sizes = [curve["span"]] * (len(curve["means"]) - 1) + [steps - begin]
    whole = sum(mean * size for mean, size in zip(curve["means"], sizes, strict=True))
    assert whole == pytest.approx(sum(losses))


def test_a_short_curve_is_kept_as_it_is() -> None:
    losses = [1.0, 0.5, 0.25]
    assert loss_curve(losses) == {"span": 1, "means": losses}


@given(st.lists(st.lists(SCORES, min_size=3, max_size=3), min_size=1, max_size=40))
def test_every_sample_is_counted_once_against_its_task_and_the_best_other(
    rows: list[list[float]],
) -> None:
    found = location_scores(Stage(scores=rows, unknown=[n % 2 > 0 for n in range(len(rows))]), 1)
    assert sum(found["own"]) == sum(found["other"]) == len(rows)
    assert found["unknown"] == pytest.approx(100 * fmean(n % 2 for n in range(len(rows))))
    assert found["edges"] == sorted(found["edges"])
    others = [min(row[0], row[2]) for row in rows]
    assert found["edges"][0] == pytest.approx(min(*others, *(row[1] for row in rows)))
    # Counted one by one: a bin holds its lower edge, the last one all that is beyond.
    inner = found["edges"][1:-1]
    for name, scores in (("own", [row[1] for row in rows]), ("other", others)):
        bins = [sum(score >= edge for edge in inner) for score in scores]
        assert found[name] == np.bincount(bins, minlength=len(inner) + 1).tolist()


def test_the_first_task_has_no_other() -> None:
    found = location_scores(Stage(scores=[[1.0], [3.0]], unknown=[False, False]), 0)
    assert (sum(found["own"]), sum(found["other"])) == (2, 0)
    assert (found["edges"][0], found["edges"][-1]) == (1.0, 3.0)
