"""The measures of a stream, by hand and against a plain restatement."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmoe.evaluation.metrics import (
    Matrix,
    bwt,
    bwt_t_minus_1,
    forgetting,
    fwt,
    last,
    maa,
    mft,
    summary,
)

# Task 0 falls from 90 to 60 to 50 and task 1 from 70 to 40; the last row's mean is 50.
THREE: Matrix = [[90.0, None, None], [60.0, 70.0, None], [50.0, 40.0, 60.0]]


@st.composite
def matrices(draw: st.DrawFn) -> list[list[float | None]]:
    """Lower triangles of 1 to 9 tasks, in percent."""
    size = draw(st.integers(1, 9))
    percent = st.floats(0, 100)
    return [[draw(percent) if j <= i else None for j in range(size)] for i in range(size)]


def test_measures_by_hand() -> None:
    assert last(THREE) == pytest.approx(50)
    assert mft(THREE) == pytest.approx((90 + 70 + 60) / 3)
    assert maa(THREE) == pytest.approx((90 + 65 + 50) / 3)
    assert bwt(THREE) == pytest.approx((-40 - 30) / 3)
    assert bwt_t_minus_1(THREE) == pytest.approx((-40 - 30) / 2)
    assert forgetting(THREE) == pytest.approx([40, 30, 0])


def test_forward_transfer_counts_what_came_before_a_task_was_learned() -> None:
    # The first task has nothing before it: whatever stands there doesn't count.
    assert fwt([99, 40, 55], [0, 30, 60, 7]) == pytest.approx((10 - 5) / 2)
    assert fwt([40], [40]) is None


def test_maa_is_a_mean_of_row_means_not_of_cells() -> None:
    cells = [value for row in THREE for value in row if value is not None]
    assert maa(THREE) != pytest.approx(np.mean(cells))


def test_forgetting_is_from_the_best_not_from_the_first() -> None:
    a: Matrix = [[50.0, None, None], [80.0, 70.0, None], [60.0, 75.0, 10.0]]
    assert forgetting(a) == pytest.approx([20, 0, 0])
    assert bwt(a) == pytest.approx((10 + 5) / 3)


@given(matrices())
def test_measures_are_their_definitions(a: list[list[float | None]]) -> None:
    m = np.array(a, dtype=float)  # None is nan
    size = len(m)
    gains = m[-1] - m.diagonal()
    assert last(a) == pytest.approx(m[-1].mean())
    assert mft(a) == pytest.approx(m.diagonal().mean())
    assert maa(a) == pytest.approx(np.nanmean(m, axis=1).mean())
    assert bwt(a) == pytest.approx(gains.sum() / size)
    assert forgetting(a) == pytest.approx(np.nanmax(m, axis=0) - m[-1])
    if size > 1:
        assert bwt_t_minus_1(a) == pytest.approx(gains[:-1].mean())


@given(matrices())
def test_bwt_is_last_less_mft(a: list[list[float | None]]) -> None:
    assert bwt(a) == pytest.approx(last(a) - mft(a), abs=1e-9)


@given(matrices(), st.integers(1, 9))
def test_a_partial_matrix_is_that_of_the_tasks_so_far(
    a: list[list[float | None]], rows: int
) -> None:
    wide = a[:rows]
    square = [row[: len(wide)] for row in wide]
    ragged = [row[: i + 1] for i, row in enumerate(wide)]
    assert summary(wide) == summary(square) == summary(ragged)
    assert forgetting(wide) == forgetting(square) == forgetting(ragged)


def test_what_stands_above_the_diagonal_is_not_read() -> None:
    ahead = [[90.0, 1.0, 2.0], [60.0, 70.0, 3.0], [50.0, 40.0, 60.0]]
    assert summary(ahead) == summary(THREE)
    assert forgetting(ahead) == forgetting(THREE)


def test_summary_names_every_measure() -> None:
    assert summary(THREE) == {
        "last": last(THREE),
        "mft": mft(THREE),
        "maa": maa(THREE),
        "bwt": bwt(THREE),
        "bwt_t_minus_1": bwt_t_minus_1(THREE),
    }


def test_a_single_task_transfers_nothing_back() -> None:
    assert summary([[80.0]]) == {
        "last": 80.0,
        "mft": 80.0,
        "maa": 80.0,
        "bwt": 0.0,
        "bwt_t_minus_1": None,
    }
    assert forgetting([[80.0]]) == [0.0]


@pytest.mark.parametrize(
    "measure", [summary, last, mft, maa, bwt, bwt_t_minus_1, forgetting], ids=lambda f: f.__name__
)
def test_a_matrix_without_its_lower_triangle_is_refused(
    measure: Callable[[Matrix], object],
) -> None:
    with pytest.raises(ValueError, match="no rows"):
        measure([])
    with pytest.raises(ValueError, match=r"lacks a\[1\]\[0\]"):
        measure([[90.0, None], [None, 70.0]])
    with pytest.raises(ValueError, match=r"lacks a\[1\]\[1\]"):
        measure([[90.0], [60.0]])
