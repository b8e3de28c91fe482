"""What tests of pages share: charts that are drawn once, a comparison, and runs with reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING

import pytest
from support.comparison_data import compared, page
from support.pages import Page

from cmoe.reports import comparison_charts, run_charts, sweep_charts
from cmoe.reports.charts.drawing import hue

if TYPE_CHECKING:
    from support.reported_runs import Stream


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
    """The charts drawn so far: they are functions of their arguments, and drawn once for all tests.

    Who clears it has all of them drawn again.
    """
    drawn: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        for module in (run_charts, comparison_charts, sweep_charts):
            for name, value in list(vars(module).items()):
                chart = isinstance(value, FunctionType) and ".reports.charts." in value.__module__
                if chart and value is not hue:
                    patch.setattr(module, name, drawn_once(value, drawn))
        yield drawn


@pytest.fixture(scope="session")
def compared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the page of a whole comparison; nobody writes to it."""
    folder = tmp_path_factory.mktemp("comparison")
    page(folder, compared())
    return folder


@pytest.fixture(scope="session")
def compared_page(compared_folder: Path) -> Page:
    return Page(compared_folder / "comparison.html")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """Three tasks, and what a run on them is configured by."""
    from support.reported_runs import make_stream

    return make_stream(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reported(stream: Stream, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a run on the first tasks, and its report after so many of them."""
    from support.reported_runs import run

    config, tasks = stream

    def make(count: int, *, learned: int, method: str = "cmoe") -> Path:
        folder = tmp_path_factory.mktemp(method) / "run"
        return run(folder, replace(config, method=method), tasks[:count], learned)

    return make


@pytest.fixture(scope="module")
def grown(reported: Callable[..., Path]) -> Path:
    """CMoE after the whole stream."""
    return reported(3, learned=3)


@pytest.fixture(scope="module")
def overwritten(reported: Callable[..., Path]) -> Path:
    """Sequential LoRA after two tasks."""
    return reported(2, learned=2, method="lora")


@pytest.fixture(scope="module")
def begun(reported: Callable[..., Path]) -> Path:
    """CMoE after the first task of three."""
    return reported(3, learned=1)


@pytest.fixture(scope="module")
def single(reported: Callable[..., Path]) -> Path:
    """CMoE on a stream of one task."""
    return reported(1, learned=1)
