"""How far accuracies may be from those of all samples like the tested ones, at 95 percent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


def share_interval(hits: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a share (JASA 22, 1927), at `CONFIDENCE`."""
    if not count:
        return 0.0, 1.0
    share, weight = hits / count, _Z * _Z / count
    middle = (share + weight / 2) / (1 + weight)
    half = _Z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_error(scores: Sequence[Sequence[float]]) -> float | None:
    """Half the interval of a mean over tasks, by the normal distribution.

    Args:
        scores: Of each task's test samples, 0 to 1.

    Returns:
        As a share; None where a task has one sample, which has no deviation.
    """
    if any(len(of) < 2 for of in scores):
        return None
    return _Z * math.sqrt(fmean(variance(of) / len(of) for of in scores) / len(scores))
