"""A sweep on one page, `sweep.html`: what was tried, what won, and what the winners are worth.

Everything is taken from `sweep.json`, and for the comparison from the streams' `matrix.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmoe.common.files import whole
from cmoe.reports.charts.drawing import hue
from cmoe.reports.charts.growth import probe_bars, sensitivity
from cmoe.reports.charts.matrices import heat_map
from cmoe.reports.charts.sweep import Tried, parallel, trade_off
from cmoe.reports.pages import needing_fields, rendered

HTML = "sweep.html"

AXES = ("alpha", "layers", "score", "per_layer", "rank", "init")
"""What a sweep searches: settings of a point."""


def write_sweep_report(
    folder: Path, said: Mapping[str, Any], streams: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write `sweep.html` into a run's folder, whole or not at all.

    Args:
        folder: Of the sweep's run.
        said: The contents of its `sweep.json`, with at least one task.
        streams: The contents of `matrix.json` by stream: of the winners, and of those they are
            compared with. Those that haven't run yet are left out.

    Raises:
        ValueError: No task has been swept yet.
    """
    if not said["tasks"]:
        raise ValueError(f"{folder}: no task has been swept yet")
    remedy = "what was swept stays; a sweep of another name has a page"
    with needing_fields(folder / "sweep.json", remedy):
        page = sweep_page(folder.name, said, streams)
    with whole(folder / HTML) as beside:
        beside.write_text(page, encoding="utf-8")


def sweep_page(name: str, said: Mapping[str, Any], streams: Mapping[str, Mapping[str, Any]]) -> str:
    """The page's text; arguments as of `write_sweep_report`."""
    shown = {
        "name": name,
        "search": said["search"],
        "settings": {part: said[part] for part in ("search", "budget")},
        "tasks": [_task(n, task, said["search"]) for n, task in enumerate(said["tasks"])],
        "growth": _growth(said["tasks"]),
        "sums": _sums(said["tasks"]),
        "streams": {label: _stream(found) for label, found in streams.items()},
        "learned": _learned(said["tasks"], streams),
    }
    return rendered(HTML, shown, took=_took, setting=_setting)


# Figures in numbers


def _sums(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over all tasks."""
    saved = {k: sum(t["saved_seconds"][k] for t in tasks) for k in tasks[0]["saved_seconds"]}
    keys = ("trials", "trial_seconds", "probe_seconds", "parameters")
    experts = sum(sum(_experts(_won(task)).values()) for task in tasks)
    return {
        "saved": saved,
        "experts": experts,
        "points": sum(len(task["points"]) for task in tasks),
        **{key: sum(task[key] for task in tasks) for key in keys},
    }


def _stream(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the comparison says of a stream; None where it has no such figure."""
    metrics, oracle, location = found["metrics"], found["oracle_metrics"], found["location"]
    parameters = found["parameters"]
    return {
        "learned": len(found["located"]),
        "tasks": len(found["tasks"]),
        "scoring": found["scoring"],
        "oracle": oracle["last"] if oracle else None,
        "location": location["accuracy"] if location else None,
        "added": parameters["added"],
        "share": 100 * parameters["added"] / parameters["base"],
        **{key: metrics[key] if metrics else None for key in ("last", "bwt", "mft")},
    }


def _learned(
    tasks: Sequence[Mapping[str, Any]], streams: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Per task its winner, and how each stream answers its test in the end."""
    rows = []
    for task in tasks:
        last = {}
        for label, found in streams.items():
            final = found["located"][-1] if found["located"] else ()
            last[label] = dict(zip(found["tasks"], final, strict=False)).get(task["task"])
        won = _won(task)
        rows.append({"task": task, "winner": won, "experts": _experts(won), "last": last})
    return rows


def _won(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """The candidate that won."""
    won: Mapping[str, Any] = next(c for c in task["candidates"] if c["name"] == task["winner"])
    return won


def _experts(candidate: Mapping[str, Any]) -> dict[int, int]:
    """By layer; JSON has made texts of the layers."""
    return {int(layer): count for layer, count in candidate["experts"].items()}


def _tried(task: Mapping[str, Any]) -> list[Tried]:
    """All candidates of a task, with what came of them."""
    results = {result["name"]: result for result in task["results"]}
    out = []
    for number, candidate in enumerate(task["candidates"], 1):
        name = candidate["name"]
        result = results.get(name, {"accuracy": None})
        accuracy, error, seconds = result["accuracy"], None, None
        if accuracy is not None:
            share, seconds = accuracy / 100, result["seconds"]
            error = 100 * math.sqrt(share * (1 - share) / result["samples"])
        state = "beaten"
        if name == task["winner"]:
            state = "wins"
        elif name in task["front"]:
            state = "front"
        elif name not in results:
            state = "over budget"
        elif accuracy is None:
            state = "stopped"
        out.append(
            Tried(
                number=number,
                name=name,
                experts=_experts(candidate),
                points=[p for p in task["points"] if p["candidate"] == name],
                parameters=candidate["parameters"],
                accuracy=accuracy,
                error=error,
                seconds=seconds,
                state=state,
            )
        )
    return out


# Figures to look at


def _task(number: int, task: Mapping[str, Any], search: Mapping[str, Any]) -> dict[str, Any]:
    """A task's section."""
    tried, name = _tried(task), task["task"]
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


def _growth(tasks: Sequence[Mapping[str, Any]]) -> str:
    """The winners' experts by layer and task."""
    grown = [_experts(_won(task)) for task in tasks]
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
