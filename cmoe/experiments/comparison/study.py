"""What a stream of the method left behind, read for what it shows of its locator and experts.

Nothing here runs a model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from cmoe.common.run_files import RunFileError
from cmoe.evaluation.predictions import Stage, read_stage, read_survey, stage_file, survey_file
from cmoe.folder import MATRIX, PREDICTIONS
from cmoe.modeling.locator import make_bank
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import LocatorConfig
from cmoe.store.log import Store

BATCH = 32
"""Features that are scored at once where the cost of scoring is timed."""
REPEATS = 50
POINTS = 101
"""Of a curve."""


def location_by_tasks(folder: Path, store: Store, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """How well and how fast tasks are found, by the number of tasks learned.

    Args:
        folder: Of a run that locates.
        store: Its log.
        tasks: Of its stream, in order.

    Returns:
        By number of tasks: `accuracy`, percent of their test samples, a mean over tasks, and
        `score_us`, microseconds a sample to score the bank, in batches of `BATCH`, on this machine.
    """
    bank = make_bank(LocatorConfig(**store.header.settings["locator"]))
    file = survey_file(folder / PREDICTIONS, 0)
    survey = read_survey(file)
    if survey is None or survey.features is None:
        raise RunFileError(
            f"{file}: lost; restore it from a copy, or remove {stage_file(file.parent, BASE)} and "
            f"the run's {MATRIX}, and the same command writes it again"
        )
    features = survey.features[:BATCH]
    rows = []
    for count in range(1, len(tasks) + 1):
        bank.append(store.read(count - 1).locator)
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            bank.score(features)
            seconds.append(time.perf_counter() - start)
        stage = _stage(folder, count - 1)
        right = [
            fmean(by == index for by in stage[task].by) for index, task in enumerate(tasks[:count])
        ]
        rows.append(
            {
                "tasks": count,
                "accuracy": 100 * fmean(right),
                "score_us": 1e6 * median(seconds) / len(features),
            }
        )
    return rows


def unknown_curves(folder: Path, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Whether samples of a task that isn't learned yet are known to be such.

    After every stage the next task's test samples are held out: the best of a sample's scores
    should be worse for them than for those of the tasks learned. `fpr` and `tpr` are the shares of
    known and of held-out samples beyond a threshold, for all thresholds; `false_alarms` and
    `caught` the percentages that the run's own limit called unknown.

    Args:
        folder: Of a run that locates.
        tasks: Of its stream, in order.
    """
    curves = []
    for count in range(1, len(tasks)):
        stage = _stage(folder, count - 1)
        known = [sample for task in tasks[:count] for sample in _best(stage[task])]
        held_out = _best(stage[tasks[count]])
        fpr, tpr, auc = roc([score for score, _ in known], [score for score, _ in held_out])
        curves.append(
            {
                "held_out": tasks[count],
                "known": count,
                "fpr": fpr,
                "tpr": tpr,
                "auc": auc,
                "false_alarms": 100 * fmean(flag for _, flag in known),
                "caught": 100 * fmean(flag for _, flag in held_out),
            }
        )
    return curves


def expert_diversity(similarity: Sequence[float | None], store: Store) -> list[dict[str, Any]]:
    """By layer its experts, and the mean cosine between two of them.

    Args:
        similarity: As in `matrix.json`.
        store: The log.
    """
    counts: Counter[int] = Counter()
    for record in store.records():
        counts.update({int(n): count for n, count in record.decision["experts"].items()})
    return [
        {"layer": layer, "experts": counts[layer], "cosine": cosine}
        for layer, cosine in enumerate(similarity)
    ]


def roc(
    known: Sequence[float], held_out: Sequence[float]
) -> tuple[list[float], list[float], float]:
    """Receiver operating characteristic of calling samples with the larger scores unknown.

    Args:
        known: Scores of samples that are not.
        held_out: Scores of those that are.

    Returns:
        False and true positive rates at `POINTS` thresholds, and the area under the whole curve:
        how often a held-out sample's score is the larger of two, ties counting half.
    """
    negative, positive = np.sort(known), np.sort(held_out)
    below = np.searchsorted(negative, positive, "left")
    ties = np.searchsorted(negative, positive, "right") - below
    auc = float((below + ties / 2).sum() / (len(negative) * len(positive)))
    thresholds = np.quantile(negative, np.linspace(1, 0, POINTS))
    fpr = [0.0, *(float((negative >= t).mean()) for t in thresholds), 1.0]
    tpr = [0.0, *(float((positive >= t).mean()) for t in thresholds), 1.0]
    return fpr, tpr, auc


def _best(stage: Stage) -> list[tuple[float, bool]]:
    """Each sample's best score, and whether it was called unknown."""
    return [(min(scores), flag) for scores, flag in zip(stage.scores, stage.unknown, strict=True)]


def _stage(folder: Path, number: int) -> Mapping[str, Stage]:
    return read_stage(stage_file(folder / PREDICTIONS, number)).tasks
