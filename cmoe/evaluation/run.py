"""A run's folder as it lies on the disk, read for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmoe.common.run_files import RunFileError, read_object, read_settings
from cmoe.data.samples import Task
from cmoe.evaluation.predictions import Predictions, Stage, read_predictions
from cmoe.evaluation.targets import Targets
from cmoe.folder import ALONE, CONFIG, MATRIX, PREDICTIONS, STAGES, STORE
from cmoe.modeling.routers import BASE
from cmoe.store.log import BaseId, Record, Store


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
        predictions: Who answered, and what.
    """

    text: str
    config: dict[str, Any]
    found: dict[str, Any]
    tasks: tuple[Task, ...]
    targets: Targets
    records: tuple[Record, ...]
    base: BaseId
    notes: list[dict[str, Any]]
    predictions: Predictions

    @property
    def names(self) -> list[str]:
        return [task.name for task in self.tasks]

    @property
    def last(self) -> Mapping[str, Stage]:
        return self.predictions.stages[len(self.tasks) - 1]

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


def read_config(folder: Path) -> dict[str, Any]:
    """How a run was configured.

    Raises:
        RunFileError: `config.yaml` is damaged.
    """
    remedy = "restore it from a copy, or give the run another name"
    return read_settings(folder / CONFIG, remedy)


def read_matrix(folder: Path) -> dict[str, Any]:
    """A run's figures so far.

    Raises:
        RunFileError: `matrix.json` is damaged.
    """
    remedy = "remove it, and the same command writes it again"
    found = read_object(folder / MATRIX, remedy, "located")
    if not isinstance(found["located"], list):
        raise RunFileError(f"{folder / MATRIX}: damaged: located is no list; {remedy}")
    return found


def read_notes(folder: Path, index: int) -> dict[str, Any]:
    """What was noted of a task, or of the base alone; nothing where no file is.

    Raises:
        RunFileError: The file is damaged.
    """
    file = notes_file(folder, index)
    remedy = "restore it from a copy, or remove it: the task's times and losses are unknown then"
    return read_object(file, remedy) if file.is_file() else {}


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
        RunFileError: A file is lost or damaged.
    """
    found = read_matrix(folder)
    count = len(found["located"])
    if not count:
        raise ValueError(f"{folder / MATRIX}: no task has been tested yet; nothing to report")
    log = Store.open(store or folder / STORE)
    records, base = log.records()[:count], log.header.base
    digests = {BASE: base.digest} | {record.index: record.digest for record in records}
    return Run(
        text=(folder / CONFIG).read_text(encoding="utf-8"),
        config=read_config(folder),
        found=found,
        tasks=tuple(tasks[:count]),
        targets=targets,
        records=records,
        base=base,
        notes=[read_notes(folder, index) for index in range(count)],
        predictions=read_predictions(folder / PREDICTIONS, tasks, digests),
    )
