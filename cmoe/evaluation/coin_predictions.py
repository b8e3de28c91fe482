"""A run's latest answers as CoIN's prediction files, for its scorers and anyone else's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cmoe.data.samples import Task
from cmoe.evaluation.predictions import read_predictions
from cmoe.folder import ALONE, COIN, PREDICTIONS
from cmoe.modeling.routers import BASE
from cmoe.tasks.answer_files import Prediction, write_predictions


def write_coin(
    folder: Path, tasks: Sequence[Task], digests: Mapping[int, str], method: str
) -> None:
    """Write `coin/<Task>.jsonl` for every task learned so far: the last row of the matrix.

    The answers are those of the latest stage evaluated, each by the primitive that was located;
    its task stands in the metadata as `answered_by`.

    Args:
        folder: The run's; its name is the run's.
        tasks: The stream.
        digests: Of every primitive so far, and of the base at -1.
        method: Its name.

    Raises:
        RunFileError: A file is lost or damaged: no answer is left out.
    """
    found = read_predictions(folder / PREDICTIONS, tasks, digests)
    if not found.learned:
        return
    stage = found.learned[-1]
    names = {BASE: ALONE} | {i: task.name for i, task in enumerate(tasks)}

    def said(task: Task) -> Iterator[Prediction]:
        for sample, answerer in zip(task.test, found.stages[stage][task.name].by, strict=True):
            text = found.text(task.name, sample.id, digests[answerer])
            yield Prediction(sample.id, sample.text, text, {"answered_by": names[answerer]})

    every = {task.name: [*said(task)] for task in tasks[: stage + 1]}  # before any is written
    (folder / COIN).mkdir(exist_ok=True)
    for name, rows in every.items():
        file = folder / COIN / f"{name}.jsonl"
        write_predictions(file, name, f"{folder.name}/{method}/{stage}", rows)
