"""A comparison on one page, `comparison.html`: the methods side by side, and what makes one work.

Everything is taken from `comparison.json`; nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cmoe.common.files import whole
from cmoe.reports.charts.accuracy import decomposition, dots_by_row, forgetting_curves
from cmoe.reports.charts.drawing import hue
from cmoe.reports.charts.location import roc, steps
from cmoe.reports.charts.matrices import heat_map
from cmoe.reports.charts.trade_off import Dot, trade_off
from cmoe.reports.pages import needing_fields, rendered

HTML = "comparison.html"

_COMPARED = ("last", "mft", "maa", "bwt")
"""The measures whose best is marked."""

_PREFIXES = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9}


def write_comparison(folder: Path, said: Mapping[str, Any]) -> None:
    """Write `comparison.html` into a folder, whole or not at all.

    Args:
        folder: Of the comparison.
        said: The contents of its `comparison.json`, with at least one run.

    Raises:
        ValueError: No method has run yet.
    """
    remedy = "the same command writes it again"
    with needing_fields(folder / "comparison.json", remedy):
        if not any(method["runs"] for method in said["methods"].values()):
            raise ValueError(f"{folder}: no method has run yet")
        page = comparison_page(said)
    with whole(folder / HTML) as beside:
        beside.write_text(page, encoding="utf-8")


def comparison_page(said: Mapping[str, Any]) -> str:
    """The page's text, from the contents of `comparison.json`."""
    entries = _entries(said)
    shown = {
        "said": said,
        "entries": entries,
        "missing": [name for name, method in said["methods"].items() if not method["runs"]],
        "headline": _headline(entries),
        "groups": _groups(entries),
        "hues": [hue(n) for n in range(len(said["tasks"]))],
        "trade_off": _trade_off(entries),
        "curves": _curves(entries),
        "last": _last(entries, said["tasks"]),
        "study": _study(said, entries) if said["study"] else None,
    }
    return rendered(HTML, shown, json=lambda value: json.dumps(value, ensure_ascii=False))


# Figures in numbers


@dataclass(frozen=True)
class Entry:
    """A method with at least one run, or a variant of one.

    Attributes:
        name: Of the method, or what the variant is called.
        method: What is said of it.
        mean: Its measures, means over seeds.
        deviation: Of these over seeds; None for what has none.
        located: Accuracy by stage and task in percent, means over seeds.
        runs: The measures of its runs.
    """

    name: str
    method: Mapping[str, Any]
    mean: Mapping[str, Any]
    deviation: Mapping[str, Any]
    located: Sequence[Sequence[float | None]]
    runs: Sequence[Mapping[str, Any]]

    @property
    def bound(self) -> bool:
        """Whether it knows what no rival does."""
        return bool(self.method.get("knows"))  # of a variant nothing is said

    @property
    def rival(self) -> bool:
        """Whether it learns, and knows no more; who learns nothing has nothing to forget."""
        return not self.bound and self.mean["trainable"] > 0


@dataclass(frozen=True)
class Measure:
    """A column of the tables.

    Attributes:
        key: Of the measure.
        title: Of the column.
        scale: What one of the column's unit is in the measure's.
        digits: After the point.
        signed: Whether it is written with its sign.
        detail: Whether only the table of all single runs has it.
    """

    key: str
    title: str
    scale: float = 1.0
    digits: int = 1
    signed: bool = False
    detail: bool = False

    def of(self, values: Mapping[str, Any]) -> float | None:
        """In the column's unit; None where it was not measured."""
        value = values.get(self.key)
        return None if value is None else value / self.scale


def _entries(said: Mapping[str, Any]) -> list[Entry]:
    """Rivals, then bounds, each by their Last; methods without a run are left out."""
    made = [
        _entry(name, method, said["base"]["parameters"])
        for name, method in said["methods"].items()
        if method["runs"]
    ]
    return sorted(made, key=lambda e: (e.bound, -e.mean["last"]))


def _entry(name: str, method: Mapping[str, Any], base: int) -> Entry:
    return Entry(
        name=name,
        method=method,
        mean=_with_ratios(method["mean"], base),
        deviation=method["deviation"],
        located=_mean_matrix(run["located"] for run in method["runs"]),
        runs=[_with_ratios(run, base) for run in method["runs"]],
    )


def _with_ratios(measures: Mapping[str, Any], base: int) -> dict[str, Any]:
    """The measures, and what they are in parts of the base's."""
    share = 100 * measures["added"] / base
    return {
        **measures,
        "share": share,
        "slowdown": _ratio(measures["latency"], measures["base_latency"]),
    }


def _groups(entries: Sequence[Entry]) -> dict[str, list[Measure]]:
    """The tables' columns."""
    flops = max(entry.mean["learning_flops"] for entry in entries)
    prefix = next((p for p, scale in _PREFIXES.items() if flops >= scale), "G")
    count: dict[str, Any] = {"digits": 0}
    return {
        "Accuracy, percent": [
            Measure("last", "Last"),
            Measure("mft", "MFT"),
            Measure("maa", "MAA"),
            Measure("bwt", "BWT", signed=True),
            Measure("bwt_t_minus_1", "BWT by T\N{MINUS SIGN}1", signed=True, detail=True),
            Measure("fwt", "FWT", signed=True),
            Measure("location", "Location"),
            Measure("oracle", "Oracle Last", detail=True),
        ],
        "Parameters": [
            Measure("added", "Added", **count),
            Measure("share", "Of the base, %"),
            Measure("kept", "Kept for learning", **count),
            Measure("trainable", "Trainable", **count),
        ],
        "Cost": [
            Measure("peak_memory", "Peak, GiB", scale=2**30, digits=2),
            Measure("learning_flops", f"Learning, {prefix}FLOP", scale=_PREFIXES[prefix]),
            Measure("learning_seconds", "Learning, min", scale=60),
            Measure("seconds", "With all answers, min", scale=60, detail=True),
            Measure("latency", "Answer, ms", scale=1e-3),
            Measure("base_latency", "Base's answer, ms", scale=1e-3, detail=True),
            Measure("slowdown", "\N{MULTIPLICATION SIGN} base", digits=2),
        ],
    }


def _headline(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """The best rival, beside the bounds; None without a rival."""
    means = {entry.name: entry.mean for entry in entries}
    first = next((entry for entry in entries if entry.rival), None)
    if first is None:
        return None
    return {
        "entry": first,
        "best": {
            key: max(entry.mean[key] for entry in entries if entry.rival) for key in _COMPARED
        },
        "of_multitask": _ratio(first.mean["last"], means.get("multitask", {}).get("last")),
        "of_per_task": _ratio(first.mean["added"], means.get("per_task_lora", {}).get("added")),
    }


def _ratio(one: float | None, other: float | None) -> float | None:
    """None where one is missing or there's nothing to measure by."""
    return None if one is None or not other else one / other


def _mean_matrix(matrices: Iterable[Sequence[Sequence[float | None]]]) -> list[list[float | None]]:
    """Cell by cell, of the runs that have it; None where none has."""
    return [
        [_mean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)
    ]


def _mean(cells: Iterable[float | None]) -> float | None:
    known = [cell for cell in cells if cell is not None]
    return fmean(known) if known else None


def _mean_row(rows: Iterable[Sequence[float]]) -> list[float]:
    """Cell by cell."""
    return [fmean(cells) for cells in zip(*rows, strict=True)]


# Figures to look at


def _trade_off(entries: Sequence[Entry]) -> str:
    """Last by added parameters."""
    ceiling = next((e.mean["last"] for e in entries if e.name == "multitask"), None)
    return trade_off("trade-off", "Last by added parameters", _dots(entries), ceiling, (600, 380))


def _dots(entries: Sequence[Entry]) -> list[Dot]:
    return [
        Dot(e.name, e.mean["added"], e.mean["last"], e.deviation["last"], e.bound) for e in entries
    ]


def _curves(entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    return [
        (entry, forgetting_curves(f"curve{n}", f"Accuracy of {entry.name} by stage", entry.located))
        for n, entry in enumerate(entries)
    ]


def _last(entries: Sequence[Entry], tasks: Sequence[str]) -> str:
    """Last by method and task: what is no rival stands apart."""
    apart = {entry.name: entry.located[-1] for entry in entries if entry.bound}
    if all(entry.name != "zero_shot" for entry in entries):
        apart["base alone"] = _mean_row([run["zero_shot"] for e in entries for run in e.runs])
    rows = {**apart, **{e.name: e.located[-1] for e in entries if not e.bound}}
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


def _study(said: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, Any]:
    """What the page shows of the study: its figures beside what is said of it."""
    study, tasks = said["study"], said["tasks"]
    studied = next(entry for entry in entries if entry.name == study["method"])
    base = said["base"]["parameters"]
    variants = [
        [_entry(one["label"], one, base) for one in group["variants"]] for group in study["groups"]
    ]
    curves = study["unknown"]["curves"]
    return {
        **study,
        "decomposition": _decomposition(studied, tasks, entries),
        "groups": [
            _group(number, group["name"], [studied, *others], said)
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
    zero_shot = _mean_row(run["zero_shot"] for run in studied.runs)
    oracle = _mean_row(run["oracle_last"] for run in studied.runs)
    located = _mean_row(run["located"][-1] for run in studied.runs)
    label = f"Zero-shot, oracle and located accuracy of {studied.name} by task"
    return {
        "zero_shot": zero_shot,
        "oracle": oracle,
        "located": located,
        "alone": next((e.located[-1] for e in entries if e.name == "per_task_lora"), None),
        "figure": decomposition("decomposition", label, tasks, zero_shot, oracle, located),
    }


def _group(
    number: int, name: str, entries: Sequence[Entry], said: Mapping[str, Any]
) -> dict[str, Any]:
    """The method as it was compared, and its variants."""
    rows = [_last_by_task(entry, said["tasks"]) for entry in entries]
    first, *others = [entry.method["settings"] for entry in entries]
    before = said["shared"] | first
    varied = {key: before.get(key) for settings in others for key in settings}
    return {
        "name": name,
        "rows": list(zip(entries, rows, [varied, *others], strict=True)),
        "best": {key: max(e.mean[key] for e in entries) for key in _COMPARED},
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


def _last_by_task(entry: Entry, tasks: Sequence[str]) -> list[float | None]:
    """In the order of the comparison's tasks, whatever a variant's own are."""
    order = entry.method["settings"].get("data.tasks", tasks)
    last = dict(zip(order, _mean_row(run["located"][-1] for run in entry.runs), strict=True))
    return [last.get(task) for task in tasks]


def _located(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By the number of learned tasks: how often the right one is found, and what a score costs."""
    right = {str(row["tasks"]): row["accuracy"] for row in rows}
    cost = {str(row["tasks"]): row["score_us"] for row in rows}
    axis = "tasks learned"
    return {
        "right": steps("located", "Located right by number of tasks", right, (axis, "percent")),
        "cost": steps("scored", "Time of a score by number of tasks", cost, (axis, "µs a sample")),
    }
