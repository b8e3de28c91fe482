"""What a run's pages say in numbers, from the contents of its `report.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cmoe.evaluation.metrics import forgetting
from cmoe.evaluation.sampling_error import mean_error, share_interval
from cmoe.folder import ALONE

_PAPER = {
    "experts.gates": "renormalized",
    "experts.attention": "0",
    "experts.build_on": "none",
    "probe.fraction": "0.1",
    "probe.rule": "relative",
    "probe.score": "frequency",
    "probe.count": "fixed by its algorithm, per_probe by its text",
    "probe.init": "used",
    "locator.layer": "-1",
    "locator.pooling": "last",
    "locator.score": "z",
}
"""What the paper says of settings that decide where experts grow and how tasks are found."""


def run_numbers(data: Mapping[str, Any]) -> dict[str, Any]:
    """What both pages say in numbers."""
    found, names = data["results"], data["learned"]
    other = "strict" if found["scoring"] == "official" else "official"
    parameters = _parameters(data)
    parts = sorted({part for row in parameters for part, n in row["parts"].items() if n})
    together = [parameters[i] for i in found["parameters"]["answering"]]
    seconds = {name: found["seconds"].get(name, {}) for name in names}
    seconds = {"base alone": found["seconds"].get(ALONE, {})} | seconds
    located = [row[: len(names)] for row in found["located"]]
    ticks = re.findall("`+", data["config_text"])
    return {
        "metrics": _metrics(found, other),
        "located": located,
        "oracle": found["oracle"][-1] if found["oracle"] else None,
        "forgotten": forgetting(located),
        **_sampling_errors(found, names, located[-1]),
        "parameters": parameters,
        "parts": parts,
        "added": {
            **{part: sum(row["parts"].get(part, 0) for row in together) for part in parts},
            "total": found["parameters"]["added"],
        },
        "seconds": seconds,
        "spent": {p: sum(s.get(p, 0.0) for s in seconds.values()) for p in _phases(seconds)},
        "generated": sum(found["generated"].values()),
        "located_right": _located_right(data) if data["location"] else None,
        "fence": max(["```", *(f"{run}`" for run in ticks)], key=len),
        "choices": _choices(data["config"]) if found["method"] == "cmoe" else [],
    }


def _metrics(found: Mapping[str, Any], other: str) -> list[dict[str, Any]]:
    """The measures by both scorings, as located and by the oracle."""
    rows = []
    for scoring, table in ((found["scoring"], found), (other, found[other])):
        for key, how in (("metrics", "located"), ("oracle_metrics", "oracle")):
            if table[key] is not None:
                rows.append({"scoring": scoring, "how": how, "fwt": None, **table[key]})
    return rows


def _sampling_errors(
    found: Mapping[str, Any], names: Sequence[str], located: Sequence[float]
) -> dict[str, Any]:
    """How far the last accuracies may be from those of all samples, in percent and points.

    Nothing of that is known of a task whose figure isn't a mean over samples.
    """
    scores = [found["last_scores"].get(name) for name in names]
    known = [of for of in scores if of is not None]
    error = mean_error(known) if len(known) == len(names) else None

    def intervals(accuracies: Sequence[float]) -> list[tuple[float, float] | None]:
        return [
            None if of is None else wilson(accuracy, len(of))
            for accuracy, of in zip(accuracies, scores, strict=False)
        ]

    return {
        "last_error": None if error is None else 100 * error,
        "no_intervals": [name for name, of in zip(names, scores, strict=True) if of is None],
        "intervals": {
            key: intervals(row) if row else None
            for key, row in (
                ("zero_shot", found["zero_shot"]),
                ("oracle", found["oracle"][-1] if found["oracle"] else None),
                ("located", located),
            )
        },
    }


def wilson(percent: float, count: int) -> tuple[float, float]:
    """The interval of an accuracy over so many samples, in percent."""
    low, high = share_interval(percent / 100 * count, count)
    return 100 * low, 100 * high


def _parameters(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each task adds: scalars by part, and operations per token."""
    found = data["results"]
    flops = found["flops_per_token"]
    rows = []
    for name in data["learned"]:
        parts, added = found["parameters"]["tasks"][name], flops["added"][name]
        share = 100 * added / flops["base"]
        rows.append({"task": name, "parts": parts, "total": data["added"][name], "flops": share})
    return rows


def _phases(seconds: Mapping[str, Mapping[str, float]]) -> list[str]:
    """All phases in their order: a later task has more of them than the first."""
    longest = sorted(seconds.values(), key=len, reverse=True)
    return list(dict.fromkeys(phase for phases in longest for phase in phases))


def _located_right(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per task in percent: located right, unknown; and where most of the wrong ones went."""
    rows, names = [], data["learned"]
    confusion = data["results"]["location"]["confusion"]
    for i, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        wrong = {names[j]: n for j, n in enumerate(counts) if j != i and n}
        rows.append(
            {
                "task": name,
                "samples": sum(counts),
                "right": 100 * counts[i] / sum(counts),
                "interval": wilson(100 * counts[i] / sum(counts), sum(counts)),
                "unknown": data["location"][name]["unknown"],
                "mistaken": max(wrong, key=lambda n: wrong[n]) if wrong else None,
                "times": max(wrong.values(), default=0),
            }
        )
    return rows


def _choices(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Setting, this run's value, the paper's."""
    rows = []
    for key, paper in _PAPER.items():
        part, name = key.split(".")
        if name in config[part]:  # a run of before there was this setting has none
            rows.append((key, str(config[part][name]), paper))
    return rows
