"""A run's latest answers as CoIN's prediction files, for its scorers and anyone else's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cmoe.data.samples import Task
from cmoe.evaluation.coin_files import Prediction, write_predictions
from cmoe.evaluation.predict import read_answers
from cmoe.evaluation.results import answerers, evaluated
from cmoe.evaluation.run import ALONE, COIN, PREDICTIONS
from cmoe.modeling.routers import BASE


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
    """
    stages = evaluated(folder / PREDICTIONS, digests)
    if not stages:
        return
    stage = stages[-1]
    by, answers = answerers(folder / PREDICTIONS, stage), read_answers(folder / PREDICTIONS)
    names = {BASE: ALONE} | {i: task.name for i, task in enumerate(tasks)}

    def said(task: Task) -> Iterator[Prediction]:
        for sample, answerer in zip(task.test, by[task.name], strict=True):
            text = answers.get((task.name, sample.id, digests[answerer]))
            if text is not None:
                metadata = {"answered_by": names[answerer]}
                yield Prediction(sample.id, sample.text, text, metadata)

    (folder / COIN).mkdir(exist_ok=True)
    for task in tasks[: stage + 1]:
        file = folder / COIN / f"{task.name}.jsonl"
        write_predictions(file, task.name, f"{folder.name}/{method}/{stage}", said(task))
