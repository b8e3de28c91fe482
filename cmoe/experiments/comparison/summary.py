"""What `comparison.json` says: its runs in a line each, and their means over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from cmoe.config.tree import RunConfig
from cmoe.evaluation.results import answering
from cmoe.experiments.comparison.intervals import in_words
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.folder import ALONE, by_key
from cmoe.methods.registry import method_entry
from cmoe.modeling.primitive import LOCATOR

OWN = ("method", "name", "seed")
"""What every run has for itself."""

ANSWERING = "predict"
"""The one phase of a task that isn't learning."""

PUBLISHED = {
    "base": "LLaVA-1.5-7B class",
    "rows": [
        {"method": "LoRA", "last": 28.74, "maa": 32.97, "bwt": -32.62},
        {"method": "LwF", "last": 30.41, "maa": 34.95, "bwt": -27.03},
        {"method": "EWC", "last": 32.90, "maa": 36.93, "bwt": -27.46},
        {"method": "MoELoRA", "last": 37.13, "maa": 42.76, "bwt": -25.91},
        {"method": "multitask", "last": None, "maa": 57.18, "bwt": None},
    ],
}
"""Figures of others on CoIN, not re-run here."""


def nothing_yet(config: RunConfig, how: CompareConfig) -> dict[str, Any]:
    """A comparison before its first run."""
    return {
        "name": config.name,
        "tasks": list(config.data.tasks),
        "scoring": config.evaluation.scoring,
        "evaluated_on": config.data.evaluate_on,
        "base": {},
        "shared": {k: v for k, v in by_key(config.as_dict()).items() if k not in OWN},
        "seeds": list(how.seeds),
        "methods": {
            method: {"knows": entry.told, "about": entry.about, "runs": [], "last_interval": None}
            for method, entry in ((n, method_entry(how.method_of(n))) for n in how.names)
        },
        "paired": None,
        "published": PUBLISHED,
        "study": None,
    }


def of_base(config: RunConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of the base, from a finished run's `matrix.json`."""
    return {
        "name": config.model.name,
        "revision": config.model.revision or "default",
        "parameters": found["parameters"]["base"],
        "flops_per_token": found["flops_per_token"]["base"],
    }


def row(config: RunConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """A finished run in a line, from its `matrix.json`."""
    parameters, location, latency = found["parameters"], found["location"], found["latency"]
    trained = [n for parts in parameters["tasks"].values() if (n := _trained(parts))]
    spent = {
        (task, phase): seconds
        for task, phases in found["seconds"].items()
        for phase, seconds in phases.items()
    }
    oracle = found["oracle_metrics"]
    return {
        "seed": config.seed,
        "run": config.name,
        **found["metrics"],
        "location": location["accuracy"] if location else None,
        "oracle": oracle["last"] if oracle else None,
        "added": parameters["added"],
        "trainable": round(fmean(trained)) if trained else 0,
        "kept": parameters["kept"],
        "peak_memory": found["peak_memory"],
        "learning_flops": found["learning_flops"],
        "seconds": sum(spent.values()),
        "learning_seconds": sum(
            seconds
            for (task, phase), seconds in spent.items()
            if task != ALONE and phase != ANSWERING
        ),
        "latency": latency["answer"] if latency else None,
        "base_latency": latency["base"] if latency else None,
        "located": found["located"],
        "zero_shot": found["zero_shot"],
        "oracle_last": found["oracle"][-1] if found["oracle"] else None,
        "similarity": found["expert_similarity"],
    }


def _trained(parts: Mapping[str, int]) -> int:
    """Scalars of a primitive that its task's training moved: the locator is fitted beside it."""
    return sum(count for part, count in answering(parts).items() if part != LOCATOR)


def summed(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample deviation of every figure over the seeds; None where one has none."""
    mean: dict[str, float | None] = {}
    deviation: dict[str, float | None] = {}
    for key, first in runs[0].items():
        values = [run[key] for run in runs]
        if key in ("seed", "run") or isinstance(first, list):
            continue
        known = None not in values
        mean[key] = fmean(values) if known else None
        deviation[key] = stdev(values) if known and len(values) > 1 else None
    return {"mean": mean, "deviation": deviation}


def table(comparison: Mapping[str, Any]) -> str:
    """The comparison, to be read on a screen: the best Last first, bounds behind."""
    order = sorted(
        comparison["methods"].items(),
        key=lambda item: (bool(item[1]["knows"]), -item[1]["mean"]["last"]),
    )
    columns = ("last", "mft", "maa", "bwt", "location")
    lines = [f"{'':<16}" + "".join(f"{name.upper():>14}" for name in columns) + f"{'added':>12}"]
    for method, mine in order:
        cells = [_pair(mine["mean"][name], mine["deviation"][name]) for name in columns]
        knows = f"  (given {mine['knows']})" if mine["knows"] else ""
        added = f"{mine['mean']['added']:>12,.0f}"
        lines.append(f"{method:<16}" + "".join(f"{c:>14}" for c in cells) + added + knows)
    if comparison["paired"]:
        lines += ["", *in_words(comparison["paired"])]
    return "\n".join(lines)


def _pair(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"
