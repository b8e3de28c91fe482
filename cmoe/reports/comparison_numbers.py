"""What a comparison's page says in numbers: its entries, measures and headline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

COMPARED = ("last", "mft", "maa", "bwt")
"""The measures whose best is marked."""

THE_TASK, ALL_TASKS = "the task", "all tasks at once"
"""What bounds know."""

_PREFIXES = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9}


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
    def apart(self) -> bool:
        """Whether it knows what no rival does: a bound, or one that goes back to earlier data."""
        return bool(self.method.get("knows"))  # of a variant nothing is said

    @property
    def learns(self) -> bool:
        """Whether it trains anything; who learns nothing has nothing to forget."""
        return bool(self.mean["trainable"] > 0)

    @property
    def rival(self) -> bool:
        """Whether it learns, and knows no more."""
        return not self.apart and self.learns


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


def entries_of(data: Mapping[str, Any]) -> list[Entry]:
    """Rivals, then who knows more, each by their Last; methods without a run are left out."""
    made = [
        entry_of(name, method, data["base"]["parameters"])
        for name, method in data["methods"].items()
        if method["runs"]
    ]
    return sorted(made, key=lambda e: (e.apart, -e.mean["last"]))


def entry_of(name: str, method: Mapping[str, Any], base: int) -> Entry:
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


def measure_groups(entries: Sequence[Entry]) -> dict[str, list[Measure]]:
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


def headline(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """The best rival, beside the bounds; None without a rival."""
    first = next((entry for entry in entries if entry.rival), None)
    if first is None:
        return None
    return {
        "entry": first,
        "best": {key: max(entry.mean[key] for entry in entries if entry.rival) for key in COMPARED},
        "ceiling": _beside(first, best_that_knows(ALL_TASKS, entries), "last"),
        "apart": _beside(first, best_that_knows(THE_TASK, entries), "added"),
    }


def best_that_knows(what: str, entries: Sequence[Entry]) -> Entry | None:
    """The first bound that knows something; None without one."""
    return next((entry for entry in entries if entry.method.get("knows") == what), None)


def _beside(first: Entry, bound: Entry | None, key: str) -> dict[str, Any] | None:
    """A bound's name, and a measure in parts of its; None where there is nothing to compare."""
    ratio = _ratio(first.mean[key], bound.mean[key]) if bound else None
    return {"name": bound.name, "ratio": ratio} if bound and ratio is not None else None


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


def mean_row(rows: Iterable[Sequence[float]]) -> list[float]:
    """Cell by cell."""
    return [fmean(cells) for cells in zip(*rows, strict=True)]


def last_by_task(entry: Entry, tasks: Sequence[str]) -> list[float | None]:
    """In the order of the comparison's tasks, whatever a variant's own are."""
    order = entry.method["settings"].get("data.tasks", tasks)
    last = dict(zip(order, mean_row(run["located"][-1] for run in entry.runs), strict=True))
    return [last.get(task) for task in tasks]
