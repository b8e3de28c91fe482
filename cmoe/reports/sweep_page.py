"""A sweep on one page, `sweep.html`: what was tried, what won, and what the winners are worth.

Everything is taken from `sweep.json`, and for the comparison from the streams' `matrix.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmoe.common.files import whole
from cmoe.reports.pages import needing_fields, rendered
from cmoe.reports.sweep_charts import growth_chart, task_shown
from cmoe.reports.sweep_numbers import learned_rows, stream_row, sums_of_tasks

PAGE = "sweep.html"


def write_sweep_report(
    folder: Path, data: Mapping[str, Any], streams: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write `sweep.html` into a run's folder, whole or not at all.

    Args:
        folder: Of the sweep's run.
        data: The contents of its `sweep.json`, with at least one task.
        streams: The contents of `matrix.json` by stream: of the winners, and of those they are
            compared with. Those that haven't run yet are left out.

    Raises:
        ValueError: No task has been swept yet.
        RunFileError: A field is missing: an earlier version wrote it.
    """
    if not data["tasks"]:
        raise ValueError(f"{folder}: no task has been swept yet")
    remedy = "what was swept stays; a sweep of another name has a page"
    with needing_fields(folder / "sweep.json", remedy):
        page = sweep_page(folder.name, data, streams)
    with whole(folder / PAGE) as beside:
        beside.write_text(page, encoding="utf-8")


def sweep_page(name: str, data: Mapping[str, Any], streams: Mapping[str, Mapping[str, Any]]) -> str:
    """The page's text; arguments as of `write_sweep_report`."""
    shown = {
        "name": name,
        "search": data["search"],
        "settings": {part: data[part] for part in ("search", "budget")},
        "tasks": [task_shown(n, task, data["search"]) for n, task in enumerate(data["tasks"])],
        "growth": growth_chart(data["tasks"]),
        "sums": sums_of_tasks(data["tasks"]),
        "streams": {label: stream_row(found) for label, found in streams.items()},
        "learned": learned_rows(data["tasks"], streams),
    }
    return rendered(PAGE, shown, took=_took, setting=_setting)


# How values are written


def _took(seconds: float) -> str:
    """A time, by its two largest units."""
    whole_seconds = round(seconds)
    if whole_seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(whole_seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _setting(value: object) -> str:
    """A value of the configuration."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return "null" if value is None else str(value)
