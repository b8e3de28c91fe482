"""A comparison on one page, `comparison.html`: the methods side by side, and what makes one work.

Everything is taken from `comparison.json`; nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmoe.common.files import whole
from cmoe.reports.charts.drawing import hue
from cmoe.reports.comparison_charts import (
    forgetting_charts,
    last_chart,
    study_shown,
    trade_off_chart,
)
from cmoe.reports.comparison_numbers import (
    ALL_TASKS,
    best_that_knows,
    entries_of,
    headline,
    measure_groups,
)
from cmoe.reports.pages import needing_fields, rendered

PAGE = "comparison.html"


def write_comparison(folder: Path, data: Mapping[str, Any]) -> None:
    """Write `comparison.html` into a folder, whole or not at all.

    Args:
        folder: Of the comparison.
        data: The contents of its `comparison.json`, with at least one run.

    Raises:
        ValueError: No method has run yet.
        RunFileError: A field is missing: an earlier version wrote it.
    """
    remedy = "the same command writes it again"
    with needing_fields(folder / "comparison.json", remedy):
        if not any(method["runs"] for method in data["methods"].values()):
            raise ValueError(f"{folder}: no method has run yet")
        page = comparison_page(data)
    with whole(folder / PAGE) as beside:
        beside.write_text(page, encoding="utf-8")


def comparison_page(data: Mapping[str, Any]) -> str:
    """The page's text, from the contents of `comparison.json`."""
    entries = entries_of(data)
    shown = {
        "comparison": data,
        "entries": entries,
        "missing": [name for name, method in data["methods"].items() if not method["runs"]],
        "headline": headline(entries),
        "joint": best_that_knows(ALL_TASKS, entries),
        "groups": measure_groups(entries),
        "paired": data.get("paired"),
        "hues": [hue(n) for n in range(len(data["tasks"]))],
        "trade_off": trade_off_chart(entries),
        "curves": forgetting_charts(entries),
        "last": last_chart(entries, data["tasks"]),
        "study": study_shown(data, entries) if data["study"] else None,
    }
    return rendered(PAGE, shown, json=lambda value: json.dumps(value, ensure_ascii=False))
