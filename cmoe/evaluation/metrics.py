"""The measures of a stream, from its accuracy matrix.

`a[i][j]` is the accuracy on task `j` after learning task `i`, in percent, for `j <= i`; what stands
above the diagonal is None, or absent, and never read. `T` is the number of rows: the first rows of
a longer stream are a matrix of their own, however wide they are. Means are over tasks and rows,
never weighted by samples.

Every function raises ValueError for a matrix without rows, and for one that lacks a cell on the
diagonal or below. Only forward transfer needs cells above the diagonal, `a[j - 1][j]`, and takes
them by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

Matrix = Sequence[Sequence[float | None]]


def summary(a: Matrix) -> dict[str, float | None]:
    """All measures of the whole stream, by name."""
    return {
        "last": last(a),
        "mft": mft(a),
        "maa": maa(a),
        "bwt": bwt(a),
        "bwt_t_minus_1": bwt_t_minus_1(a),
    }


def last(a: Matrix) -> float:
    """`mean_j a[T-1][j]`: what the last model knows, in percent."""
    return fmean(_triangle(a)[-1])


def mft(a: Matrix) -> float:
    """`mean_j a[j][j]`: mean fine-tune accuracy, each task just learned, in percent."""
    return fmean(row[-1] for row in _triangle(a))


def maa(a: Matrix) -> float:
    """`mean_i mean_{j<=i} a[i][j]`: mean average accuracy, a mean of row means, in percent."""
    return fmean(fmean(row) for row in _triangle(a))


def bwt(a: Matrix) -> float:
    """`(1/T) sum_j (a[T-1][j] - a[j][j])`: backward transfer by CoIN's divisor, in points.

    The last task's own term is 0 and still counts in `T`.
    """
    rows = _triangle(a)
    return _transferred(rows) / len(rows)


def bwt_t_minus_1(a: Matrix) -> float | None:
    """Backward transfer by the usual divisor `T - 1`, in points; None after a single task."""
    rows = _triangle(a)
    return _transferred(rows) / (len(rows) - 1) if len(rows) > 1 else None


def forgetting(a: Matrix) -> list[float]:
    """`max_i a[i][j] - a[T-1][j]` of each task `j`, in points: at least 0, and 0 for the last."""
    rows = _triangle(a)
    return [max(row[j] for row in rows[j:]) - final for j, final in enumerate(rows[-1])]


def fwt(before: Sequence[float], zero_shot: Sequence[float]) -> float | None:
    """`(1/(T-1)) sum_{j>0} (a[j-1][j] - zero_shot[j])`: forward transfer, in points.

    What learning the tasks before a task did for it (Lopez-Paz & Ranzato 2017, eq. 4, with the base
    in the place of random initialisation); None after a single task.

    Args:
        before: `a[j-1][j]` of each task `j`, in percent; the first one's own doesn't count.
        zero_shot: Accuracy of the base, of as many tasks or more.
    """
    gains = [now - base for now, base in zip(before, zero_shot, strict=False)][1:]
    return fmean(gains) if gains else None


def _transferred(rows: Sequence[Sequence[float]]) -> float:
    return sum(final - rows[j][j] for j, final in enumerate(rows[-1]))


def _triangle(a: Matrix) -> list[list[float]]:
    """Row `i`'s first `i + 1` cells."""
    if not a:
        raise ValueError("the accuracy matrix has no rows: no task has been learned")
    return [[_cell(a, i, j) for j in range(i + 1)] for i in range(len(a))]


def _cell(a: Matrix, i: int, j: int) -> float:
    value = a[i][j] if j < len(a[i]) else None
    if value is None:
        raise ValueError(f"the accuracy matrix lacks a[{i}][{j}]: task {j} after task {i}")
    return value
