"""What the stream's test samples are scored against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cmoe.common.errors import DataError
from cmoe.data.samples import Task
from cmoe.data.settings import DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.tasks.answer_files import read_targets, target_of
from cmoe.tasks.registry import judged_by
from cmoe.tasks.scorer import Target
from cmoe.tasks.scorer_registry import scorer_named
from cmoe.tasks.scoring import require_targets

Targets = Mapping[str, Mapping[str, Target]]
"""By task and question id, in the order of the task's test samples."""


def stream_targets(
    tasks: Sequence[Task], data: DataConfig, evaluation: EvaluationConfig
) -> dict[str, dict[str, Target]]:
    """The targets of all test samples: from a task's answer file, or else the samples' own.

    A selection is of training samples, which the files don't answer: it keeps its own.

    Raises:
        DataError: An answer file can't be used, or has no answer to one of the samples; or a task's
            scorer can't judge by a target.
    """
    files = answer_files(data, evaluation)
    targets = {
        task.name: _answered(task, Path(files[task.name]))
        if task.name in files
        else {sample.id: target_of(sample) for sample in task.test}
        for task in tasks
    }
    for task in tasks:
        require_targets(scorer_named(judged_by(task)), task.name, targets[task.name])
    return targets


def answer_files(data: DataConfig, evaluation: EvaluationConfig) -> Mapping[str, str]:
    """By task the file that its tests are scored by, where that isn't the test file."""
    return evaluation.answer_files if data.evaluate_on == "test" else {}


def _answered(task: Task, file: Path) -> dict[str, Target]:
    known = read_targets(task.name, file)
    found: dict[str, Target] = {}
    for sample in task.test:
        if sample.id not in known:
            raise DataError(
                f"{file}: has no answer to sample {sample.id!r} of {task.name}; "
                f"evaluation.answer_files.{task.name} must be of the split that is tested"
            )
        found[sample.id] = known[sample.id]
    return found
