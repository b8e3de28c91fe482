"""Intervals of accuracies, against published ones and against drawing samples."""

from __future__ import annotations

import numpy as np
import pytest

from cmoe.evaluation.sampling_error import mean_error, share_interval


@pytest.mark.parametrize(
    ("hits", "count", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611))],
)
def test_the_interval_of_a_share_is_wilsons(
    hits: int, count: int, interval: tuple[float, float]
) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert share_interval(hits, count) == pytest.approx(interval, abs=6e-5)


def test_a_mean_over_tasks_errs_as_drawing_samples_anew_says() -> None:
    """95 of 100 means of other samples lie within the interval around the true mean."""
    rng = np.random.default_rng(0)
    chances, count = [0.9, 0.5, 0.2], 60
    drawn = [[rng.binomial(1, p, count).tolist() for p in chances] for _ in range(2000)]
    true = float(np.mean(chances))
    errors = [mean_error(scores) for scores in drawn]
    within = [
        abs(float(np.mean(scores)) - true) <= error
        for scores, error in zip(drawn, errors, strict=True)
        if error is not None
    ]
    assert np.mean(within) == pytest.approx(0.95, abs=0.02)


def test_one_sample_tells_no_error() -> None:
    assert mean_error([[1.0, 0.0], [1.0]]) is None
