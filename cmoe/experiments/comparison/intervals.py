"""How far figures are from noise: bootstrap intervals of Last and of differences between methods.

Seeds and test samples are drawn anew together, from those that there are (Efron & Tibshirani 1993):
an interval tells what other seeds and other samples of the same kind would give. Two methods are
compared on the same samples with the same seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
CHUNK = 100
"""Resamples at a time: a large test's would fill the memory."""

Scores = Mapping[int, Mapping[str, Sequence[float]]]
"""By seed and task, what each test sample scored in the end, 0 to 1, in the samples' order.

A task whose figure isn't a mean of such scores is missing, and nothing is said of its noise.
"""


def last_interval(scores: Scores, tasks: Sequence[str]) -> list[float] | None:
    """Of a method's Last over these tasks, percent; None where a task has no scores."""
    tables = _tables(scores)
    if tables.keys() != set(tasks):
        return None
    interval: list[float] = _summed(tables)["interval"]
    return interval


def paired(reference: str, scores: Mapping[str, Scores], tasks: Sequence[str]) -> dict[str, Any]:
    """By how much a method's Last exceeds each other's, in points, with intervals.

    Tasks without scores are left out of Last here.

    Args:
        reference: The method.
        scores: By method. Methods that share no seed with it are left out.
        tasks: The comparison's.

    Returns:
        `reference`; `without`, the tasks left out; and `others` by name: `difference`, `interval`,
        whether it is `beyond` noise (the interval leaves 0 out), and the same by task.
    """
    mine, others = scores[reference], {}
    for name, theirs in scores.items():
        seeds = sorted(mine.keys() & theirs.keys())
        if name == reference or not seeds:
            continue
        a, b = (_tables({seed: each[seed] for seed in seeds}) for each in (mine, theirs))
        if not (falls := {task: a[task] - b[task] for task in a if task in b}):
            continue
        others[name] = _summed(falls) | {
            "tasks": {task: _summed({task: fall}) for task, fall in falls.items()}
        }
    known = {task for of in scores[reference].values() for task in of}
    without = [task for task in tasks if task not in known]
    return {"reference": reference, "without": without, "others": others}


def in_words(found: Mapping[str, Any]) -> list[str]:
    """The paired differences in sentences, the largest first."""
    rows = sorted(found["others"].items(), key=lambda item: -item[1]["difference"])
    without = found.get("without")
    left = f", without {', '.join(without)}" if without else ""
    return [f"{found['reference']} and {name}{left}: {_told(one)}" for name, one in rows]


def _told(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    figures = f"{one['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"
    if not one["beyond"]:
        return f"{figures}, not to be told from noise"
    return f"{figures}, {'better' if one['difference'] > 0 else 'worse'} beyond noise"


def _tables(scores: Scores) -> dict[str, NDArray[np.float64]]:
    """By task the scores [seeds, samples]."""
    runs = [scores[seed] for seed in sorted(scores)]
    return {task: np.array([run[task] for run in runs], float) for task in runs[0]}


def _summed(tables: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """The mean over tasks of the means over seeds and samples, in percent, and its interval."""
    difference = 100 * float(np.mean([table.mean() for table in tables.values()]))
    rng = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    seeds = len(next(iter(tables.values())))
    drawn = rng.integers(0, seeds, (RESAMPLES, seeds))
    weights = (drawn[:, :, None] == np.arange(seeds)).mean(1)  # [R, seeds]
    for table in tables.values():
        count = table.shape[1]
        for at in range(0, RESAMPLES, CHUNK):
            some = weights[at : at + CHUNK]
            samples = rng.integers(0, count, (len(some), count))
            mixed = np.take_along_axis(some @ table, samples, 1)  # [chunk, samples]
            means[at : at + CHUNK] += 100 * mixed.mean(1) / len(tables)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail]).tolist()
    return {"difference": difference, "interval": [low, high], "beyond": low > 0 or high < 0}
