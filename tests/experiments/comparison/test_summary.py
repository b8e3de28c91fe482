"""Means over the seeds, and the order of the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmoe.experiments.comparison.summary import summed, table


@given(st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_means_and_sample_deviations_are_over_the_seeds(values: list[float]) -> None:
    runs = [
        {"seed": n, "run": f"a-{n}", "last": v, "location": None, "located": [[v]]}
        for n, v in enumerate(values)
    ]
    found = summed(runs)
    assert found["mean"] == {"last": pytest.approx(np.mean(values)), "location": None}
    assert found["deviation"]["last"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert summed(runs[:1])["deviation"] == {"last": None, "location": None}


def test_rows_on_the_screen_are_the_best_first_and_bounds_last() -> None:
    def method(last: float, knows: str = "") -> dict[str, Any]:
        mean = {"last": last, "mft": 1.0, "maa": 1.0, "bwt": -2.0, "location": None, "added": 5.0}
        deviation = dict.fromkeys(mean, 0.25)
        return {"knows": knows, "mean": mean, "deviation": deviation}

    methods = {"a": method(10), "b": method(90, "the task"), "c": method(30)}
    said: dict[str, Any] = {"methods": methods, "paired": None}
    lines = table(said).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["c", "a", "b"]
    assert "30.0 ± 0.2" in lines[1]
    assert lines[3].endswith("(given the task)")
    one = {"difference": 1.25, "interval": [-0.5, 3.0], "beyond": False}
    said["paired"] = {"reference": "c", "others": {"a": one}}
    assert table(said).splitlines()[:4] == lines[:4]
    assert table(said).splitlines()[-1].startswith("c and a: +1.2 points (-0.5 to +3.0), not ")
