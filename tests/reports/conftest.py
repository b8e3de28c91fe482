"""Charts are drawn once for all tests of pages: they are functions of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType

import pytest

from cmoe.reports import comparison_charts, run_charts, sweep_charts
from cmoe.reports.charts.drawing import hue


def drawn_once(chart: Callable[..., str], drawn: dict[str, str]) -> Callable[..., str]:
    """The chart, drawn where none of the same arguments is kept."""

    def kept(*args: object, **options: object) -> str:
        key = repr((chart.__module__, chart.__name__, args, options))
        if key not in drawn:
            drawn[key] = chart(*args, **options)
        return drawn[key]

    return kept


@pytest.fixture(autouse=True, scope="session")
def drawn_charts() -> Iterator[dict[str, str]]:
    """The charts drawn so far; who clears it has all of them drawn again."""
    drawn: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        for page in (run_charts, comparison_charts, sweep_charts):
            for name, value in list(vars(page).items()):
                chart = isinstance(value, FunctionType) and ".reports.charts." in value.__module__
                if chart and value is not hue:
                    patch.setattr(page, name, drawn_once(value, drawn))
        yield drawn
