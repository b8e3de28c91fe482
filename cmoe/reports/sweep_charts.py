"""The charts of a sweep's page, by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmoe.reports.charts.drawing import hue
from cmoe.reports.charts.growth import probe_bars, sensitivity
from cmoe.reports.charts.matrices import heat_map
from cmoe.reports.charts.sweep import parallel, trade_off
from cmoe.reports.sweep_numbers import Tried, experts_of, tried_candidates, winner_of

AXES = ("alpha", "min_gain", "layers", "score", "per_layer", "rank", "init")
"""What a sweep searches: settings of a point."""


def task_shown(number: int, task: Mapping[str, Any], search: Mapping[str, Any]) -> dict[str, Any]:
    """A task's section."""
    tried, name = tried_candidates(task), task["task"]
    trials = [t for t in tried if t.state != "over budget"]
    keys = [key for key in AXES if len(search[key]) > 1]
    axes = {key: _ordered(search[key]) for key in keys}
    won = next(t for t in tried if t.state == "wins")
    return {
        **task,
        "tried": tried,
        "won": won,
        "axes": keys,
        "trade_off": trade_off(
            f"front{number}", f"Accuracy of {name} by added parameters", trials, task["limit"]
        ),
        "parallel": parallel(
            f"points{number}", f"What was tried for {name}, setting by setting", trials, axes
        )
        if len(trials) > 1
        else None,
        "probes": _probes(number, name, won, task["probes"], search) if task["probes"] else None,
    }


def _ordered(values: Sequence[Any]) -> list[Any]:
    """Numbers by size, names as they were given."""
    return list(values) if isinstance(values[0], str) else sorted(values)


def _probes(
    number: int, task: str, won: Tried, probes: Mapping[str, Any], search: Mapping[str, Any]
) -> dict[str, Any]:
    """What the probes said, and what the winner made of it."""
    point = won.points[0]
    cut = sorted(set(probes["passed"]) - won.experts.keys())
    return {
        "cut": bool(cut),
        "thresholded": point["alpha"] is not None or point.get("min_gain") is not None,
        "bars": probe_bars(
            f"probe{number}",
            f"Probe scores of {task} by layer",
            probes["scores"],
            probes["threshold"],
            list(won.experts),
            cut,
            point["score"],
            (540, 250),
        ),
        "sensitivity": sensitivity(
            f"alpha{number}",
            f"Layers that grow for {task} by alpha",
            probes,
            search["alpha"],
            point,
        ),
    }


def growth_chart(tasks: Sequence[Mapping[str, Any]]) -> str:
    """The winners' experts by layer and task."""
    grown = [experts_of(winner_of(task)) for task in tasks]
    layers = range(1 + max(max(experts, default=0) for experts in grown))
    added = [[experts.get(layer, 0) for experts in grown] for layer in layers]
    return heat_map(
        "growth",
        "Experts of the winners by layer and task",
        added,
        [str(layer) for layer in layers],
        [task["task"] for task in tasks],
        axes=("added by", "layer"),
        texts=[[str(count or "·") for count in row] for row in added],
        hues=[hue(n) for n in range(len(tasks))],
        peak=max(map(max, added)),
        low=26,
    )
