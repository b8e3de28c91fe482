"""Answers to the test samples after every stage, by all workers, none generated twice.

A prediction is a function of (sample, primitive) (method, "What must hold", rule 3), and is
computed as one: a batch holds samples of one primitive, padded to a length that is the sample's own
and to the full batch size. Who else is in the batch, how many workers there are and what was known
before change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from cmoe.data.batches import LENGTH_STEP, slices
from cmoe.data.fingerprint import questions
from cmoe.data.samples import Sample, Task
from cmoe.data.session import Session
from cmoe.evaluation.predictions import (
    Evaluated,
    Key,
    Stage,
    Survey,
    kept_answers,
    primitives_of,
    read_stage,
    read_survey,
    stage_file,
    survey_file,
    write_answers,
    write_survey,
)
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.methods.method import Method
from cmoe.modeling.routers import BASE

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Wanted:
    """An answer that is needed: of primitive `by` to a task's sample.

    The prompt is padded to `length` tokens. Sorted, those that can share a batch lie together.
    """

    by: int
    length: int
    task: int
    sample: int


class Predictor:
    """Answers and locates the stream's test samples; keeps what it finds in a folder.

    Args:
        method: What answers. With sharded weights it runs within `gathering`.
        session: The worker's.
        tasks: The stream.
        root: Of its data.
        folder: Rank 0 writes `answers-*.parquet`, `stage-*.parquet` and `survey-*.safetensors`.
        config: How.
        emit: Receives progress.
    """

    def __init__(
        self,
        method: Method,
        session: Session,
        tasks: Sequence[Task],
        root: str,
        folder: Path,
        config: EvaluationConfig,
        *,
        emit: Callable[..., None],
    ) -> None:
        self.method, self.session, self.tasks, self.root = method, session, tasks, root
        self.group = session.group
        self.folder, self.config, self.emit = folder, config, emit
        self._surveyed: set[int] = set()  # tasks
        self._surveys: dict[int, Survey] = {}  # of them, on rank 0
        self._digests: dict[int, list[str]] = {}  # of a task's questions; rank 0 alone needs them

    def done(self, stage: int, digests: Mapping[int, str]) -> bool:
        """Whether a stage has been evaluated, by these primitives and on these test samples.

        Args:
            stage: -1 is the base before the first task.
            digests: As in `evaluate`.

        Raises:
            RunFileError: Its file is damaged.
        """
        return self.group.from_first(lambda: self._done(stage, digests))

    def _done(self, stage: int, digests: Mapping[int, str]) -> bool:
        file = stage_file(self.folder, stage)
        if not file.is_file():
            return False
        found = read_stage(file)
        asked = {name: (one.ids, one.questions) for name, one in found.tasks.items()}
        mine = {
            self.tasks[task].name: ([s.id for s in self.tasks[task].test], self._questions(task))
            for task in self._tests(stage)
        }
        return (found.primitives, asked) == (primitives_of(stage, digests), mine)

    def _tests(self, stage: int) -> range:
        """The tasks whose tests are answered after a stage."""
        return range(len(self.tasks) if stage == BASE else min(stage + 2, len(self.tasks)))

    def _questions(self, task: int) -> list[str]:
        """Digests of what a task's test samples ask."""
        if task not in self._digests:
            self._digests[task] = questions(self.tasks[task].test, self.root)
        return self._digests[task]

    def evaluate(self, stage: int, digests: Mapping[int, str]) -> Evaluated:
        """Answer the tests of all tasks up to `stage` and of the next, of all tasks for -1.

        The next task's show what it gains from those before it (forward transfer). The answers are
        in the folder then; `write_stage` of what is returned says so.

        Args:
            stage: Index of the task learned last.
            digests: Digest of every primitive up to `stage`, and of the base at -1.

        Returns:
            What the stage's file is to hold; on other ranks than 0 it lacks what these don't know.
        """
        tests = self._tests(stage)
        for task in tests:
            self._survey(task)
        located: dict[str, Stage] = {}
        kept: set[str] = set()

        def plan() -> list[Wanted]:
            located.update((self.tasks[t].name, self._located(stage, t)) for t in tests)
            keys = {w: self._key(w, digests) for w in self._wanted(stage, located)}
            known = kept_answers(self.folder) if self.config.cache else {}
            kept.update(known[key] for key in keys.values() if key in known)
            return [wanted for wanted, key in keys.items() if key not in known]

        written = self._generate(stage, self.group.from_first(plan), digests)
        return Evaluated(located, primitives_of(stage, digests), sorted({*kept, *written}))

    # What each sample needs

    def _survey(self, task: int) -> None:
        """Prompt lengths and features of a task's test samples, from the disk if they are there.

        Rank 0 alone needs and keeps them.
        """
        if task in self._surveyed:
            return
        self._surveyed.add(task)
        file = survey_file(self.folder, task)

        def read() -> bool:
            survey = read_survey(file, self._questions(task))
            if survey is not None:
                self._surveys[task] = survey
            return survey is not None

        if self.group.from_first(read):
            return
        rows = self._asked(self.tasks[task])
        if self.group.first:
            every = torch.cat(rows)
            lengths = tuple(every[:, -1].int().tolist())
            survey = Survey(lengths, every[:, :-1] if self.method.locates else None)
            write_survey(file, survey, self._questions(task))
            self._surveys[task] = survey

    def _asked(self, task: Task) -> list[Tensor]:
        """Features with prompts' lengths behind them, of every batch of a task's test samples."""

        def compute(batch: Mapping[str, Tensor]) -> Tensor:
            """Features [B, d] with the prompts' lengths behind them."""
            lengths = batch["attention_mask"].sum(1, keepdim=True).float()
            if not self.method.locates:
                return lengths
            return torch.cat([self.method.features(batch), lengths], 1)

        return self.session.over(
            task.test,
            "prompts",
            compute,
            lambda step, steps: self.emit(phase="features", of=task.name, step=step, steps=steps),
            first=True,
        )

    def _located(self, stage: int, task: int) -> Stage:
        """Which primitive answers each test sample of a task after a stage, and why."""
        ids, count = [s.id for s in self.tasks[task].test], len(self.tasks[task].test)
        if stage == BASE or not self.method.locates:
            one = BASE if stage == BASE else self.method.answerer(stage, task)
            by, unknown = [one] * count, [False] * count
            return Stage(ids, self._questions(task), by, unknown, [[]] * count)
        features = self._surveys[task].features
        assert features is not None
        location = self.method.locate(features.to(self.group.device))
        return Stage(
            ids,
            self._questions(task),
            location.tasks.tolist(),
            location.unknown.tolist(),
            location.scores.tolist(),
        )

    def _wanted(self, stage: int, located: Mapping[str, Stage]) -> list[Wanted]:
        """Answers by the located primitive and, where a method locates, by the task's own."""
        wanted = set()
        for task, one in enumerate(located.values()):
            for sample, (by, length) in enumerate(
                zip(one.by, self._surveys[task].lengths, strict=True)
            ):
                length = padded(length)
                wanted.add(Wanted(by, length, task, sample))
                if task <= stage and self.method.locates:
                    wanted.add(Wanted(task, length, task, sample))
        return sorted(wanted)

    # Answers

    def _generate(
        self, stage: int, wanted: Sequence[Wanted], digests: Mapping[int, str]
    ) -> list[str]:
        """Generate answers; the names of the files that hold them, on rank 0."""
        written: list[str] = []
        batches = alike(wanted, lambda w: (w.by, w.length), self.session.batch_size)
        mine = self.group.share(batches, equal=self.session.sharded)
        rounds = -(-len(batches) // self.group.workers)
        every = self.config.flush_every
        answers = self._answers(mine)
        for first in range(0, rounds, every):
            rows: dict[int, list[str]] = {}
            for number in range(first, min(first + every, len(mine))):
                rows[mine[number][0]] = next(answers)
                self.emit(phase="predict", step=number + 1, steps=rounds)
            merged = dict(pair for part in self.group.to_first(rows) for pair in part.items())
            if self.group.first and merged:
                answered = [(batches[n], merged[n]) for n in sorted(merged)]
                written.append(self._write_answers(stage, answered, digests))
        return written

    def _answers(self, mine: Sequence[tuple[int, list[Wanted]]]) -> Iterator[list[str]]:
        """The texts of each of this rank's batches."""
        for _, batch in mine:
            samples = [self.tasks[w.task].test[w.sample] for w in batch]
            by, length = batch[0].by, batch[0].length
            yield texts(self.method, self.session, samples, by, length, self.config.max_new_tokens)

    # The folder

    def _key(self, wanted: Wanted, digests: Mapping[int, str]) -> Key:
        task, sample = self.tasks[wanted.task], wanted.sample
        question = self._questions(wanted.task)[sample]
        return Key(task.name, task.test[sample].id, question, digests[wanted.by])

    def _write_answers(
        self,
        stage: int,
        answered: Sequence[tuple[Sequence[Wanted], Sequence[str]]],
        digests: Mapping[int, str],
    ) -> str:
        answers = {
            self._key(wanted, digests): text
            for batch, texts in answered
            for wanted, text in zip(batch, texts, strict=True)
        }
        return write_answers(self.folder, stage, answers)


def texts(
    method: Method,
    session: Session,
    samples: Sequence[Sample],
    by: int,
    length: int,
    max_new_tokens: int,
) -> list[str]:
    """What a primitive answers to some samples: a function of each alone (rule 3), in its bits too.

    Args:
        method: What answers.
        session: Where; its batch size is what the samples are filled up to.
        samples: Those of a batch.
        by: Index of the primitive, or -1.
        length: Tokens that every prompt is padded to.
        max_new_tokens: Of an answer at most.
    """
    collator = session.collator
    full = [*islice(cycle(samples), session.batch_size)]
    inputs = session.group.moved(collator.prompts(full, length))
    more = {"synced_gpus": True} if session.sharded else {}  # others' passes are waited for
    sequences = method.generate(inputs, by, max_new_tokens=max_new_tokens, do_sample=False, **more)
    return collator.answers(sequences[: len(samples)], inputs["input_ids"].shape[1])


def alike(items: Sequence[T], key: Callable[[T], Any], size: int) -> list[list[T]]:
    """Batches of at most `size` neighbours that share a key."""
    groups = (list(group) for _, group in groupby(items, key))
    return [[group[i] for i in cut] for group in groups for cut in slices(len(group), size)]


def padded(length: int) -> int:
    """The length to which a prompt of `length` tokens is padded, whatever its batch."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP
