"""From answers to figures: the accuracy matrix, what forgetting did to it, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmoe.data.samples import Task
from cmoe.evaluation.metrics import fwt, summary
from cmoe.evaluation.predictions import Predictions, Stage, read_predictions
from cmoe.evaluation.targets import Targets
from cmoe.folder import MATRIX as MATRIX
from cmoe.modeling.primitive import MEMORY
from cmoe.modeling.routers import BASE
from cmoe.tasks.registry import judged_by, scored
from cmoe.tasks.scorer import Mode
from cmoe.tasks.scoring import Scored

MEASURED = ("seconds", "learning_flops", "peak_memory", "latency")
"""Of `matrix.json`: what was spent here. All else is a function of the run's configuration."""


@dataclass(frozen=True)
class Facts:
    """What the figures need beside the answers.

    Attributes:
        method: Its name.
        digests: Of every primitive so far, and of the base at -1.
        parameters: Added by each primitive so far, by part.
        answering: The primitives that answer after the latest stage.
        base_parameters: Scalars of the frozen base.
        flops: Operations per token of a forward pass: the base's at -1, and what each task's
            experts and routers add.
        similarity: Mean cosine between two experts, per layer; None for a method without.
        seconds: By task and phase; what answering with the base alone took stands under `base`.
        locates: Whether the method finds the task itself; if not, there is no oracle beside it.
        told: What the method is told and a learner in a stream isn't.
        learning_flops: Operations of all that was learned here, by formula; 0 where a store was
            taken over.
        peak_memory: Bytes that the largest worker came to need; None if not known.
        latency: Seconds to answer one sample alone in the end, `answer`, and the base's, `base`.
    """

    method: str
    digests: Mapping[int, str]
    parameters: Sequence[Mapping[str, int]]
    answering: Sequence[int]
    base_parameters: int
    flops: Mapping[int, int]
    similarity: Sequence[float | None] | None
    seconds: Mapping[str, Mapping[str, float]]
    locates: bool
    told: str = ""
    learning_flops: int = 0
    peak_memory: int | None = None
    latency: Mapping[str, float] | None = None


def results(
    folder: Path, tasks: Sequence[Task], targets: Targets, facts: Facts, scoring: Mode
) -> dict[str, Any]:
    """Everything that is written to `matrix.json`, from the answers in a folder.

    Rows are the stages evaluated so far; accuracies are percent, null above the diagonal. `before`
    holds each task's accuracy just before it was learned, `scorers` the names of what judges the
    tasks, `last_scores` what each test sample scores after the latest stage, 0 to 1; it lacks tasks
    whose figure isn't a mean of samples' scores.

    Args:
        folder: With the answers and the stages.
        tasks: The stream.
        targets: Of its test samples.
        facts: The rest.
        scoring: The scorers of the main tables; the other mode's stand beside them.

    Raises:
        RunFileError: A file is lost or damaged: an answer that is missing is no wrong one.
    """
    found = read_predictions(folder, tasks, facts.digests)
    stages = found.learned
    other: Mode = "strict" if scoring == "official" else "official"
    tables = {mode: _tables(tasks, targets, found, facts, mode) for mode in (scoring, other)}
    return {
        "tasks": [t.name for t in tasks],
        "method": facts.method,
        "told": facts.told,
        "scoring": scoring,
        "scorers": {t.name: judged_by(t) for t in tasks},
        **tables[scoring],
        other: {key: value for key, value in tables[other].items() if key != "last_scores"},
        "location": _location(tasks[: len(stages)], found.stages[stages[-1]])
        if facts.locates and stages
        else None,
        "parameters": {
            "base": facts.base_parameters,
            "added": sum(
                n for i in facts.answering for n in answering(facts.parameters[i]).values()
            ),
            "answering": list(facts.answering),
            "kept": sum(parts.get(MEMORY, 0) for parts in facts.parameters),
            "tasks": {t.name: dict(p) for t, p in zip(tasks, facts.parameters, strict=False)},
        },
        "flops_per_token": {
            "base": facts.flops[BASE],
            "added": {t.name: facts.flops[i] for i, t in enumerate(tasks) if i in facts.flops},
        },
        "learning_flops": facts.learning_flops,
        "expert_similarity": facts.similarity,
        "generated": {
            "base" if s == BASE else str(s): found.generated.get(s, 0) for s in (BASE, *stages)
        },
        "seconds": {name: dict(phases) for name, phases in facts.seconds.items()},
        "peak_memory": facts.peak_memory,
        "latency": None if facts.latency is None else dict(facts.latency),
    }


def answering(parts: Mapping[str, int]) -> dict[str, int]:
    """Of the scalars of a primitive, by part, those that answer."""
    return {part: count for part, count in parts.items() if part != MEMORY}


def table(found: Mapping[str, Any]) -> str:
    """The results of a whole stream, to be read on a screen."""
    located, oracle, zero_shot = found["located"], found["oracle"], found["zero_shot"]
    columns = {
        "base": zero_shot,
        "learned": [row[i] for i, row in enumerate(located)],
        "at the end": located[-1],
    }
    if oracle:
        columns["true task given"] = oracle[-1]
    width = max(len("task"), *map(len, found["tasks"]))
    lines = ["  ".join([f"{'task':<{width}}", *columns])]
    for i, task in enumerate(found["tasks"]):
        cells = [f"{values[i]:>{len(name)}.1f}" for name, values in columns.items()]
        lines.append("  ".join([f"{task:<{width}}", *cells]))
    measures = found["metrics"]
    figures = [f"{n.upper()} {measures[n]:.1f}" for n in ("last", "mft", "maa", "bwt")]
    if found["location"]:
        figures.append(f"location {found['location']['accuracy']:.1f}")
    added, base = found["parameters"]["added"], found["parameters"]["base"]
    figures.append(f"added parameters {100 * added / base:.1f}% of the base")
    return "\n".join(
        [*lines, f"{found['method']}, {found['scoring']} scoring, percent:", "  ".join(figures)]
    )


def _tables(
    tasks: Sequence[Task],
    targets: Targets,
    found: Predictions,
    facts: Facts,
    mode: Mode,
) -> dict[str, Any]:
    stages = found.learned
    by = {n: {name: one.by for name, one in of.items()} for n, of in found.stages.items()}
    known: dict[tuple[int, tuple[int, ...]], Scored] = {}

    def judged(task: int, answering: Sequence[int]) -> Scored:
        key = task, tuple(answering)
        if key not in known:
            name = tasks[task].name
            texts: list[str | None] = [
                found.text(name, question, facts.digests[a])
                for question, a in zip(targets[name], answering, strict=True)
            ]
            known[key] = scored(tasks[task], mode, texts, list(targets[name].values()))
        return known[key]

    def cell(task: int, answering: Sequence[int]) -> float:
        return round(judged(task, answering).figure, 6)

    def matrix(answering: Any) -> list[list[float | None]]:
        return [
            [cell(j, answering(i, j)) if j <= i else None for j in range(len(tasks))]
            for i in stages
        ]

    located = matrix(lambda i, j: by[i][tasks[j].name])
    oracle = None
    if facts.locates:
        oracle = matrix(lambda i, j: [j] * len(tasks[j].test))
    zero_shot = before = forward = None
    if BASE in by:
        zero_shot = [cell(j, by[BASE][t.name]) for j, t in enumerate(tasks)]
        before = [cell(j, by[j - 1][tasks[j].name]) for j in range(len(stages))]
        forward = fwt(before, zero_shot)
    return {
        "zero_shot": zero_shot,
        "before": before,
        "located": located,
        "oracle": oracle,
        "metrics": summary(located) | {"fwt": forward} if located else None,
        "oracle_metrics": summary(oracle) if oracle else None,
        "last_scores": {
            task.name: [round(score, 4) for score in each]
            for j, task in enumerate(tasks[: len(stages)])
            if (each := judged(j, by[stages[-1]][task.name]).each) is not None
        },
    }


def _location(tasks: Sequence[Task], stage: Mapping[str, Stage]) -> dict[str, Any]:
    """Percent of samples located right (a mean over tasks), and counts: true x located."""
    counts = [Counter(stage[t.name].by) for t in tasks]
    confusion = [[count[j] for j in range(len(tasks))] for count in counts]
    right = [100 * row[i] / sum(row) for i, row in enumerate(confusion)]
    return {"accuracy": round(sum(right) / len(right), 6), "confusion": confusion}
