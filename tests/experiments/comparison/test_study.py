"""The area under a curve, and its points, against their definitions."""

from __future__ import annotations

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmoe.experiments.comparison.study import roc


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_the_area_is_how_often_a_held_out_score_is_larger(
    known: list[int], held_out: list[int]
) -> None:
    pairs = [(h > k) + (h == k) / 2 for h in held_out for k in known]
    fpr, tpr, auc = roc(known, held_out)
    assert auc == pytest.approx(fmean(pairs))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert fpr == sorted(fpr)
    assert tpr == sorted(tpr)


def test_every_point_of_a_curve_is_a_thresholds() -> None:
    known, held_out = [0.0, 1.0, 2.0, 3.0], [2.5, 3.5]
    fpr, tpr, _ = roc(known, held_out)
    reached = set(zip(fpr, tpr, strict=True))
    for threshold in known:
        false = fmean(k >= threshold for k in known)
        assert (false, fmean(h >= threshold for h in held_out)) in reached
