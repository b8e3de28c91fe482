"""A run's folder as it lies on the disk, read for its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cmoe.data.samples import Task
from cmoe.evaluation.predict import read_answers, stage_file
from cmoe.evaluation.results import MATRIX
from cmoe.evaluation.targets import Targets
from cmoe.modeling.routers import BASE
from cmoe.parsing import parse_yaml
from cmoe.store import BaseId, Record, Store

CONFIG, STORE, PREDICTIONS, STAGES = "config.yaml", "store", "predictions", "stages"
COIN, TRAIN = "coin", "train"
APART = (STORE, TRAIN)  # of a run's folder: the log, and Ray's own part with the checkpoints
ALONE = "base"  # stands for the frozen base where tasks are named


@dataclass(frozen=True)
class Stage:
    """Where a task's test samples went after a stage; one entry per sample."""

    by: list[int]
    unknown: list[bool]
    scores: list[list[float]]


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Attributes:
        text: The configuration as it was written.
        config: The same, read.
        found: `matrix.json`.
        tasks: Those learned and tested so far.
        targets: What their test samples are scored against.
        records: Of their primitives.
        base: The frozen base's name, revision and digest.
        notes: Of every task, its losses.
        stages: By stage (-1 is the base) and task.
        answers: (task, question, primitive) -> text.
    """

    text: str
    config: dict[str, Any]
    found: dict[str, Any]
    tasks: tuple[Task, ...]
    targets: Targets
    records: tuple[Record, ...]
    base: BaseId
    notes: list[dict[str, Any]]
    stages: dict[int, dict[str, Stage]]
    answers: dict[tuple[str, str, str], str]

    @property
    def names(self) -> list[str]:
        return [task.name for task in self.tasks]

    @property
    def last(self) -> dict[str, Stage]:
        return self.stages[len(self.tasks) - 1]

    @property
    def locates(self) -> bool:
        return self.found["location"] is not None


def notes_file(folder: Path, index: int) -> Path:
    """What a task took, and how its losses went; beside the store, as times differ between runs.

    Args:
        folder: The run's.
        index: Of the task, or -1 for the base alone.
    """
    return folder / STAGES / (f"{index:03d}.json" if index != BASE else f"{ALONE}.json")


def read_run(
    folder: Path, tasks: Sequence[Task], targets: Targets, store: str | None = None
) -> Run:
    """Read a run's folder.

    Args:
        folder: As the run left it.
        tasks: The stream.
        targets: Of its test samples.
        store: Where its log lies, if not in the folder.

    Raises:
        ValueError: No task has been tested yet.
    """
    text = (folder / CONFIG).read_text(encoding="utf-8")
    found = json.loads((folder / MATRIX).read_text(encoding="utf-8"))
    count = len(found["located"])
    if not count:
        raise ValueError(f"{folder / MATRIX}: no task has been tested yet; nothing to report")
    log = Store.open(store or folder / STORE)
    files = [notes_file(folder, i) for i in range(count)]
    notes = [json.loads(f.read_text(encoding="utf-8")) if f.is_file() else {} for f in files]
    stages = {
        number: read_stage(file)
        for number in (BASE, *range(count))
        if (file := stage_file(folder / PREDICTIONS, number)).is_file()
    }
    return Run(
        text=text,
        config=parse_yaml(text),
        found=found,
        tasks=tuple(tasks[:count]),
        targets=targets,
        records=log.records()[:count],
        base=log.header.base,
        notes=notes,
        stages=stages,
        answers=read_answers(folder / PREDICTIONS),
    )


def read_stage(file: Path) -> dict[str, Stage]:
    """Where the test samples went after a stage, by task."""
    table = pq.read_table(file).to_pydict()
    stages: dict[str, Stage] = {}
    columns = (table[name] for name in ("task", "by", "unknown", "scores"))
    for task, by, unknown, scores in zip(*columns, strict=True):
        stage = stages.setdefault(task, Stage([], [], []))
        stage.by.append(by)
        stage.unknown.append(unknown)
        stage.scores.append(scores)
    return stages
