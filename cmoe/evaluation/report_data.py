"""What a run's report shows, as plain values: `report.json`, which its pages are made of.

Everything is taken from the run's folder, its store and its test samples; no model runs. A page
needs nothing else: whoever has this file can show the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from cmoe.data.samples import Task
from cmoe.evaluation.predictions import Predictions, Stage, read_predictions
from cmoe.evaluation.results import answering
from cmoe.evaluation.shown_samples import shown_samples
from cmoe.evaluation.targets import Targets
from cmoe.folder import RunFolder
from cmoe.modeling.locator import make_bank
from cmoe.modeling.primitive import LOCATOR
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import LocatorConfig
from cmoe.store.log import Store

BINS = 30
"""Of a histogram of scores; the last one holds all that lies beyond the 95% quantile."""

CURVE_POINTS = 1000
"""Of a loss curve, at most: of a longer one, means of equal spans are kept."""


def report_data(folder: RunFolder, tasks: Sequence[Task], targets: Targets) -> dict[str, Any]:
    """What the report of a run shows, in JSON's types.

    Args:
        folder: Of the run, with at least one task tested.
        tasks: The stream, with the test samples that were answered.
        targets: What those were scored against.

    Returns:
        `config` and `config_text`, the configuration read and as it was written;
        `results`, the contents of `matrix.json`;
        `learned`, the names of the tasks tested so far;
        `base`, the frozen base's name, revision and digest;
        `records`, of every task its primitive's digest and the decision behind it;
        `added`, of every task the scalars that answer;
        `asked`, how many answers the matrices are made of, had each stage been answered afresh;
        `losses`, by phase and task, see `loss_curve`;
        `location`, of every task what the locator said of its test samples, see `location_scores`,
        and the `limit` beyond which a score is unknown; None for a method that doesn't locate;
        `samples`, of every task a few test samples, see `shown_samples`.

    Raises:
        ValueError: No task has been tested yet.
        RunFileError: A file is lost or damaged.
    """
    found = folder.read_matrix()
    count = len(found["located"])
    if not count:
        raise ValueError(f"{folder.matrix}: no task has been tested yet; nothing to report")
    log = Store.open(folder.store)
    records, base = log.records()[:count], log.header.base
    digests = {BASE: base.digest} | {record.index: record.digest for record in records}
    predictions = read_predictions(folder.predictions, tasks, digests)
    learned, last = tasks[:count], predictions.stages[count - 1]
    locates = found["location"] is not None
    return {
        "config": folder.read_config(),
        "config_text": folder.config.read_text(encoding="utf-8"),
        "results": found,
        "learned": [task.name for task in learned],
        "base": asdict(base),
        "records": [{"digest": r.digest, "decision": dict(r.decision)} for r in records],
        "added": {
            task.name: sum(answering(found["parameters"]["tasks"][task.name]).values())
            for task in learned
        },
        "asked": _asked(predictions, locates),
        "losses": _losses(folder, learned),
        "location": {
            task.name: location_scores(last[task.name], index) | {"limit": limit}
            for index, (task, limit) in enumerate(zip(learned, _limits(log, count), strict=True))
        }
        if locates
        else None,
        "samples": {
            task.name: shown_samples(task, targets[task.name], predictions, digests, learned, found)
            for task in learned
        },
    }


def _asked(predictions: Predictions, locates: bool) -> int:
    """Answers that the matrices are made of, had each stage been answered afresh."""
    count = 0
    for number, stage in predictions.stages.items():
        for i, samples in enumerate(stage.values()):
            own = {i} if locates and i <= number else set()
            count += sum(len({by} | own) for by in samples.by)
    return count


def _losses(folder: RunFolder, learned: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Curves by phase: the tasks' own training, then their probes'; a task without one has none."""
    noted = {
        task.name: folder.read_notes(index).get("loss", {}) for index, task in enumerate(learned)
    }
    phases = dict.fromkeys(phase for losses in noted.values() for phase in losses)
    curves = {
        phase: {
            task: loss_curve(losses[phase]) for task, losses in noted.items() if losses.get(phase)
        }
        for phase in sorted(phases, key=lambda name: name != "train")
    }
    return {phase: of for phase, of in curves.items() if of}


def loss_curve(losses: Sequence[float]) -> dict[str, Any]:
    """A loss by step, in `CURVE_POINTS` points at most: each the mean of `span` steps."""
    span = -(-len(losses) // CURVE_POINTS)
    means = [fmean(losses[begin : begin + span]) for begin in range(0, len(losses), span)]
    return {"span": span, "means": means}


def _limits(log: Store, count: int) -> list[float]:
    """Of the first tasks, the scores beyond which a sample is unknown."""
    import safetensors.torch

    bank = make_bank(LocatorConfig(**log.header.settings["locator"]))
    entries = (log.read_data(record, LOCATOR) for record in log.records()[:count])
    bank.append(*map(safetensors.torch.load, entries))
    limits: list[float] = bank.limits.tolist()
    return limits


def location_scores(stage: Stage, task: int) -> dict[str, Any]:
    """What the locator said of a task's test samples.

    Args:
        stage: Where the samples went after the last task.
        task: Index of their own task.

    Returns:
        `unknown`, percent of them that no task seems to have; and how many samples have a score
        within each bin of `edges`: against their `own` task, and against the best `other` one.
    """
    import numpy as np

    own = [row[task] for row in stage.scores]
    other = [min(s for j, s in enumerate(row) if j != task) for row in stage.scores if len(row) > 1]
    low = min((*own, *other))
    high = float(np.quantile([*own, *other], 0.95)) if other else max(own)
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)

    def counts(scores: Sequence[float]) -> list[int]:
        binned: list[int] = np.histogram(np.clip(scores, low, edges[-1]), edges)[0].tolist()
        return binned

    return {
        "unknown": 100 * fmean(stage.unknown),
        "edges": edges.tolist(),
        "own": counts(own),
        "other": counts(other),
    }
