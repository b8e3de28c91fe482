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
from cmoe.reports.comparison_numbers import entries_of, headline, measure_groups
from cmoe.reports.pages import needing_fields, rendered

PAGE = "comparison.html"


def write_comparison(folder: Path, said: Mapping[str, Any]) -> None:
    """Write `comparison.html` into a folder, whole or not at all.

    Args:
        folder: Of the comparison.
        said: The contents of its `comparison.json`, with at least one run.

    Raises:
        ValueError: No method has run yet.
        RunFileError: A field is missing: an earlier version wrote it.
    """
    remedy = "the same command writes it again"
    with needing_fields(folder / "comparison.json", remedy):
        if not any(method["runs"] for method in said["methods"].values()):
            raise ValueError(f"{folder}: no method has run yet")
        page = comparison_page(said)
    with whole(folder / PAGE) as beside:
        beside.write_text(page, encoding="utf-8")


def comparison_page(said: Mapping[str, Any]) -> str:
    """The page's text, from the contents of `comparison.json`."""
    entries = entries_of(said)
    shown = {
        "said": said,
        "entries": entries,
        "missing": [name for name, method in said["methods"].items() if not method["runs"]],
        "headline": headline(entries),
        "groups": measure_groups(entries),
        "hues": [hue(n) for n in range(len(said["tasks"]))],
        "trade_off": trade_off_chart(entries),
        "curves": forgetting_charts(entries),
        "last": last_chart(entries, said["tasks"]),
        "study": study_shown(said, entries) if said["study"] else None,
    }
    return rendered(PAGE, shown, json=lambda value: json.dumps(value, ensure_ascii=False))
