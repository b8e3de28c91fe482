"""What answering tests can be told, a section of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmoe.common.bounds import require
from cmoe.common.nearest import unknown
from cmoe.tasks.registry import tasks
from cmoe.tasks.scorers import Mode


@dataclass(frozen=True)
class EvaluationConfig:
    """How test samples are answered.

    Attributes:
        batch_size: Samples a batch.
        max_new_tokens: Length of an answer at most.
        cache: Whether an answer that the same primitive gave to the same sample before is kept;
            without, all are generated again after every task.
        flush_every: Batches per worker from one file of answers to the next: what a crash costs.
        scoring: CoIN's `official` scorers, or `strict`, the same intent without their defects.
        answer_files: By task a file that its tests are scored by instead of the test file's single
            answers: ScienceQA's problems.json (beside pid_splits.json), TextVQA_0.5.1_val.json,
            GQA's testdev_balanced_questions.json, or another file in CoIN's own format.
    """

    batch_size: int = 32
    max_new_tokens: int = 16
    cache: bool = True
    flush_every: int = 16
    scoring: Mode = "official"
    answer_files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self, "evaluation", "batch_size", "max_new_tokens", "flush_every", least=1)
        for task in self.answer_files:
            if task not in tasks():
                raise ValueError(
                    f"evaluation.answer_files names {task!r}; {unknown(task, tasks())}"
                )
