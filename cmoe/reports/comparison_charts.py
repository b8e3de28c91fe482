"""The charts of a comparison's page, and what its study shows beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmoe.reports.charts.accuracy import decomposition, dots_by_row, forgetting_curves
from cmoe.reports.charts.drawing import hue
from cmoe.reports.charts.location import roc, steps
from cmoe.reports.charts.matrices import heat_map
from cmoe.reports.charts.trade_off import Dot, trade_off
from cmoe.reports.comparison_numbers import (
    ALL_TASKS,
    COMPARED,
    THE_TASK,
    Entry,
    best_that_knows,
    entry_of,
    last_by_task,
    mean_row,
)


def trade_off_chart(entries: Sequence[Entry]) -> str:
    """Last by added parameters."""
    joint = best_that_knows(ALL_TASKS, entries)
    ceiling = joint.mean["last"] if joint else None
    return trade_off("trade-off", "Last by added parameters", _dots(entries), ceiling, (600, 380))


def _dots(entries: Sequence[Entry]) -> list[Dot]:
    return [
        Dot(e.name, e.mean["added"], e.mean["last"], e.deviation["last"], e.apart) for e in entries
    ]


def forgetting_charts(entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """Each method's accuracy by task and stage."""
    return [
        (entry, forgetting_curves(f"curve{n}", f"Accuracy of {entry.name} by stage", entry.located))
        for n, entry in enumerate(entries)
    ]


def last_chart(entries: Sequence[Entry], tasks: Sequence[str]) -> str:
    """Last by method and task: what is no rival stands apart."""
    apart = {entry.name: entry.located[-1] for entry in entries if entry.apart}
    if all(entry.learns for entry in entries):
        apart["base alone"] = mean_row([run["zero_shot"] for e in entries for run in e.runs])
    rows = {**apart, **{e.name: e.located[-1] for e in entries if not e.apart}}
    return heat_map(
        "last",
        "Last by method and task",
        list(rows.values()),
        list(rows),
        tasks,
        axes=("tested on", ""),
        apart=len(apart),
    )


# The study


def study_shown(data: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, Any]:
    """What the page shows of the study: its figures beside what is said of it."""
    study, tasks = data["study"], data["tasks"]
    studied = next(entry for entry in entries if entry.name == study["method"])
    base = data["base"]["parameters"]
    variants = [
        [entry_of(one["label"], one, base) for one in group["variants"]]
        for group in study["groups"]
    ]
    curves = study["unknown"]["curves"]
    return {
        **study,
        "decomposition": _decomposition(studied, tasks, entries),
        "groups": [
            _group(number, group["name"], [studied, *others], data)
            for number, (group, others) in enumerate(zip(study["groups"], variants, strict=True))
        ],
        "runs": [run for others in variants for entry in others for run in entry.runs],
        "located": _located(study["location"]),
        "roc": roc(
            "roc",
            "Unlearned samples called unknown by learned ones called so",
            curves,
            [hue(tasks.index(curve["held_out"])) for curve in curves],
        )
        if curves
        else None,
    }


def _decomposition(
    studied: Entry, tasks: Sequence[str], entries: Sequence[Entry]
) -> dict[str, Any]:
    """From the base to a task's own experts, and to what is located."""
    zero_shot = mean_row(run["zero_shot"] for run in studied.runs)
    oracle = mean_row(run["oracle_last"] for run in studied.runs)
    located = mean_row(run["located"][-1] for run in studied.runs)
    alone = best_that_knows(THE_TASK, entries)
    label = f"Zero-shot, oracle and located accuracy of {studied.name} by task"
    return {
        "zero_shot": zero_shot,
        "oracle": oracle,
        "located": located,
        "alone": {"name": alone.name, "last": alone.located[-1]} if alone else None,
        "figure": decomposition("decomposition", label, tasks, zero_shot, oracle, located),
    }


def _group(
    number: int, name: str, entries: Sequence[Entry], data: Mapping[str, Any]
) -> dict[str, Any]:
    """The method as it was compared, and its variants."""
    rows = [last_by_task(entry, data["tasks"]) for entry in entries]
    first, *others = [entry.method["settings"] for entry in entries]
    before = data["shared"] | first
    varied = {key: before.get(key) for settings in others for key in settings}
    return {
        "name": name,
        "rows": list(zip(entries, rows, [varied, *others], strict=True)),
        "best": {key: max(e.mean[key] for e in entries) for key in COMPARED},
        "best_by_task": [
            max(value for value in column if value is not None)
            for column in zip(*rows, strict=True)
        ],
        "cost": trade_off(f"group{number}", f"Last by added parameters, by {name}", _dots(entries)),
        "by_task": dots_by_row(
            f"group{number}-tasks",
            f"Last by task, by {name}",
            [entry.name for entry in entries],
            rows,
            [entry.mean["last"] for entry in entries],
        ),
    }


def _located(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By the number of learned tasks: how often the right one is found, and what a score costs."""
    right = {str(row["tasks"]): row["accuracy"] for row in rows}
    cost = {str(row["tasks"]): row["score_us"] for row in rows}
    axis = "tasks learned"
    return {
        "right": steps("located", "Located right by number of tasks", right, (axis, "percent")),
        "cost": steps("scored", "Time of a score by number of tasks", cost, (axis, "µs a sample")),
    }
