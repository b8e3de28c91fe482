"""`cmoe score`: what a file of predictions is worth by a task's or any scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from cmoe.common.nearest import unknown
from cmoe.tasks.scorer import Target


def main(words: Sequence[str], prog: str) -> int:
    from cmoe.tasks import judge

    return judge.main(words, prog, partial(_task, prog))


def _task(prog: str, file: str, name: str) -> tuple[str, Mapping[str, Target]]:
    """A task of a run's configuration: its scorer's name, and the targets of its test rows.

    Raises:
        ValueError: The configuration has no such task, or its rows can't be used.
    """
    from cmoe.config.parse import parse
    from cmoe.data.coin import read_tasks
    from cmoe.evaluation.targets import stream_targets
    from cmoe.tasks.registry import judged_by

    config = parse(["--name", "scored", "--config", file], prog)
    if name not in config.data.tasks:
        raise ValueError(f"{file}: data.tasks has no {name!r}; {unknown(name, config.data.tasks)}")
    # One training sample: they aren't asked for.
    data = replace(config.data, tasks=(name,), selection=0.0, evaluate_on="test", train_samples=1)
    (task,) = read_tasks(data, config.seed)
    return judged_by(task), stream_targets([task], data, config.evaluation)[name]
