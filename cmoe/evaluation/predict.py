"""Answers to the test samples after every stage, by all workers, none generated twice.

A prediction is a function of (sample, primitive) (method, "What must hold", rule 3), and is
computed as one: a batch holds samples of one primitive, padded to a length that is the sample's own
and to the full batch size. Who else is in the batch, how many workers there are and what was known
before change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cmoe.data.batches import LENGTH_STEP, Collator, slices
from cmoe.data.samples import Sample, Task
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.files import whole
from cmoe.group import Group
from cmoe.methods.method import Method
from cmoe.modeling.routers import BASE
from cmoe.passes import over_batches

T = TypeVar("T")

ANSWERS, STAGE, SURVEY = "answers", "stage", "survey"


@dataclass(frozen=True, order=True)
class Wanted:
    """An answer that is needed: of primitive `by` to a task's sample.

    The prompt is padded to `length` tokens. Sorted, those that can share a batch lie together.
    """

    by: int
    length: int
    task: int
    sample: int


@dataclass(frozen=True)
class Survey:
    """What is known of a task's test samples before any answer.

    Attributes:
        lengths: Tokens of each prompt.
        features: What the locator sees of each, [n, d]; None where the method doesn't locate.
    """

    lengths: tuple[int, ...]
    features: Tensor | None


class Predictor:
    """Answers and locates the stream's test samples; keeps what it finds in a folder.

    Args:
        method: What answers.
        group: The workers.
        tasks: The stream.
        folder: Rank 0 writes `answers-*.parquet`, `stage-*.parquet` and `survey-*.safetensors`.
        config: How.
        collator: Of the base.
        running: Makes the method's module fit to run.
        kept: Sees to it that what the folder holds is kept, wherever that is.
        synced: Whether every rank has to make as many passes as the others (sharded weights).
        loader_workers: As in `loader`.
        emit: Receives progress.
    """

    def __init__(
        self,
        method: Method,
        group: Group,
        tasks: Sequence[Task],
        folder: Path,
        config: EvaluationConfig,
        collator: Collator,
        *,
        running: Callable[[], AbstractContextManager[None]],
        kept: Callable[[], None],
        synced: bool,
        loader_workers: int,
        emit: Callable[..., None],
    ) -> None:
        self.method, self.group, self.tasks = method, group, tasks
        self.folder, self.config, self.collator = folder, config, collator
        self.running, self.kept = running, kept
        self.synced, self.loader_workers = synced, loader_workers
        self.emit = emit
        self._surveys: dict[int, Survey] = {}

    def done(self, stage: int) -> bool:
        """Whether a stage has been evaluated; -1 is the base before the first task."""
        return self.group.from_first(lambda: stage_file(self.folder, stage).is_file())

    def evaluate(self, stage: int, digests: Mapping[int, str]) -> None:
        """Answer the tests of all tasks up to `stage` and of the next, of all tasks for -1.

        The next task's show what it gains from those before it (forward transfer).

        Args:
            stage: Index of the task learned last.
            digests: Digest of every primitive up to `stage`, and of the base at -1.
        """
        tests = range(len(self.tasks) if stage == BASE else min(stage + 2, len(self.tasks)))
        for task in tests:
            self._survey(task)
        located, wanted = self.group.from_first(lambda: self._plan(stage, tests, digests))
        self._generate(stage, wanted, digests)
        if self.group.first:
            self.kept()  # the answers, before the stage says that they are there
            self._write_stage(stage, located)
        self.group.wait()  # no rank goes on before the stage is on the disk

    # What each sample needs

    def _survey(self, task: int) -> None:
        """Prompt lengths and features of a task's test samples, from the disk if they are there."""
        if task in self._surveys:
            return
        file = survey_file(self.folder, task)
        survey = self.group.from_first(lambda: read_survey(file))
        if survey is None:
            survey = self._asked(self.tasks[task])
            if self.group.first:
                _write_survey(file, survey)
        self._surveys[task] = survey

    def _asked(self, task: Task) -> Survey:
        def compute(batch: Mapping[str, Tensor]) -> Tensor:
            """Features [B, d] with the prompts' lengths behind them."""
            lengths = batch["attention_mask"].sum(1, keepdim=True).float()
            if not self.method.locates:
                return lengths
            return torch.cat([self.method.features(batch), lengths], 1)

        with self.running():
            batches = over_batches(
                self.group,
                task.test,
                self.config.batch_size,
                self.collator.prompts,
                compute,
                equal=self.synced,
                loader_workers=self.loader_workers,
                done=lambda step, steps: self.emit(
                    phase="features", of=task.name, step=step, steps=steps
                ),
            )
        rows = torch.cat(batches)
        lengths = tuple(rows[:, -1].int().tolist())
        return Survey(lengths, rows[:, :-1] if self.method.locates else None)

    def _plan(
        self, stage: int, tests: Sequence[int], digests: Mapping[int, str]
    ) -> tuple[dict[int, dict[str, list[Any]]], list[Wanted]]:
        """Who answers each test sample after a stage, and which answers aren't known yet."""
        located = self._located(stage, tests)
        known = read_answers(self.folder) if self.config.cache else {}
        wanted = self._wanted(stage, located)
        return located, [w for w in wanted if self._key(w, digests) not in known]

    def _located(self, stage: int, tests: Sequence[int]) -> dict[int, dict[str, list[Any]]]:
        """Which primitive answers each test sample after a stage, and why."""
        found: dict[int, dict[str, list[Any]]] = {}
        for task in tests:
            count = len(self.tasks[task].test)
            if stage == BASE or not self.method.locates:
                one = BASE if stage == BASE else self.method.answerer(stage, task)
                by, unknown = [one] * count, [False] * count
                found[task] = {"by": by, "unknown": unknown, "scores": [[]] * count}
                continue
            features = self._surveys[task].features
            assert features is not None
            location = self.method.locate(features.to(self.group.device))
            found[task] = {
                "by": location.tasks.tolist(),
                "unknown": location.unknown.tolist(),
                "scores": location.scores.tolist(),
            }
        return found

    def _wanted(self, stage: int, located: Mapping[int, Mapping[str, list[Any]]]) -> list[Wanted]:
        """Answers by the located primitive and, where a method locates, by the task's own."""
        wanted = set()
        for task, columns in located.items():
            for sample, (by, length) in enumerate(
                zip(columns["by"], self._surveys[task].lengths, strict=True)
            ):
                length = padded(length)
                wanted.add(Wanted(by, length, task, sample))
                if task <= stage and self.method.locates:
                    wanted.add(Wanted(task, length, task, sample))
        return sorted(wanted)

    # Answers

    def _generate(self, stage: int, wanted: Sequence[Wanted], digests: Mapping[int, str]) -> None:
        batches = alike(wanted, lambda w: (w.by, w.length), self.config.batch_size)
        mine = self.group.share(batches, equal=self.synced)
        rounds = -(-len(batches) // self.group.workers)
        every = self.config.flush_every
        with self.running():
            answers = self._answers(mine)
            for first in range(0, rounds, every):
                rows: dict[int, list[str]] = {}
                for number in range(first, min(first + every, len(mine))):
                    rows[mine[number][0]] = next(answers)
                    self.emit(phase="predict", step=number + 1, steps=rounds)
                merged = dict(pair for part in self.group.gather(rows) for pair in part.items())
                if self.group.first and merged:
                    answered = [(batches[n], merged[n]) for n in sorted(merged)]
                    self._write_answers(stage, answered, digests)

    def _answers(self, mine: Sequence[tuple[int, list[Wanted]]]) -> Iterator[list[str]]:
        """The texts of each of this rank's batches."""
        for _, batch in mine:
            samples = [self.tasks[w.task].test[w.sample] for w in batch]
            by, length = batch[0].by, batch[0].length
            yield texts(
                self.method,
                self.group,
                self.collator,
                self.config,
                samples,
                by,
                length,
                synced=self.synced,
            )

    # The folder

    def _key(self, wanted: Wanted, digests: Mapping[int, str]) -> tuple[str, str, str]:
        task = self.tasks[wanted.task]
        return task.name, task.test[wanted.sample].id, digests[wanted.by]

    def _write_answers(
        self,
        stage: int,
        answered: Sequence[tuple[Sequence[Wanted], Sequence[str]]],
        digests: Mapping[int, str],
    ) -> None:
        rows = [
            (*self._key(w, digests), text)
            for batch, texts in answered
            for w, text in zip(batch, texts, strict=True)
        ]
        names = ("task", "question_id", "primitive", "text")
        table = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        number = len(list(self.folder.glob(f"{ANSWERS}-*.parquet")))
        table["stage"] = [stage] * len(rows)
        _write(self.folder / f"{ANSWERS}-{number:05d}.parquet", table)

    def _write_stage(self, stage: int, located: Mapping[int, Mapping[str, list[Any]]]) -> None:
        table: dict[str, list[Any]] = {
            n: [] for n in ("task", "question_id", "by", "unknown", "scores")
        }
        for task, columns in located.items():
            test = self.tasks[task].test
            table["task"] += [self.tasks[task].name] * len(test)
            table["question_id"] += [s.id for s in test]
            for name, values in columns.items():
                table[name] += values
        _write(stage_file(self.folder, stage), table)


def texts(
    method: Method,
    group: Group,
    collator: Collator,
    config: EvaluationConfig,
    samples: Sequence[Sample],
    by: int,
    length: int,
    *,
    synced: bool,
) -> list[str]:
    """What a primitive answers to some samples: a function of each alone (rule 3), in its bits too.

    Args:
        method: What answers.
        group: Where.
        collator: Of the base.
        config: How; the samples are at most its batch.
        samples: Those of a batch.
        by: Index of the primitive, or -1.
        length: Tokens that every prompt is padded to.
        synced: Whether other ranks' passes have to be waited for.
    """
    full = [*islice(cycle(samples), config.batch_size)]
    inputs = group.moved(collator.prompts(full, length))
    more = {"synced_gpus": True} if synced else {}
    sequences = method.generate(
        inputs, by, max_new_tokens=config.max_new_tokens, do_sample=False, **more
    )
    new = sequences[: len(samples), inputs["input_ids"].shape[1] :]
    return [t.strip() for t in collator.tokenizer.batch_decode(new, skip_special_tokens=True)]


def alike(items: Sequence[T], key: Callable[[T], Any], size: int) -> list[list[T]]:
    """Batches of at most `size` neighbours that share a key."""
    groups = (list(group) for _, group in groupby(items, key))
    return [[group[i] for i in cut] for group in groups for cut in slices(len(group), size)]


def padded(length: int) -> int:
    """The length to which a prompt of `length` tokens is padded, whatever its batch."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def stage_file(folder: Path, stage: int) -> Path:
    """Which primitive answers which sample after a stage; there once the stage is evaluated."""
    return folder / (f"{STAGE}-{stage:03d}.parquet" if stage != BASE else f"{STAGE}-base.parquet")


def read_answers(folder: Path) -> dict[tuple[str, str, str], str]:
    """All answers: (task, question id, primitive) -> text."""
    answers: dict[tuple[str, str, str], str] = {}
    for file in sorted(folder.glob(f"{ANSWERS}-*.parquet")):
        table = pq.read_table(file).to_pydict()
        keys = zip(table["task"], table["question_id"], table["primitive"], strict=True)
        for key, text in zip(keys, table["text"], strict=True):
            answers.setdefault(key, text)
    return answers


def _write(file: Path, table: Mapping[str, list[Any]]) -> None:
    types = {
        "by": pa.int32(),
        "stage": pa.int32(),
        "unknown": pa.bool_(),
        "scores": pa.list_(pa.float32()),
    }
    arrays = {n: pa.array(v, types.get(n, pa.string())) for n, v in table.items()}
    with whole(file) as beside:
        pq.write_table(pa.table(arrays), beside)


def survey_file(folder: Path, task: int) -> Path:
    """What is known of a task's test samples before any answer; there once it was looked for."""
    return folder / f"{SURVEY}-{task:03d}.safetensors"


def read_survey(file: Path) -> Survey | None:
    """A survey from the disk, if it is there."""
    from safetensors.torch import load_file

    if not file.is_file():
        return None
    tensors = load_file(file)
    return Survey(tuple(tensors["lengths"].tolist()), tensors.get("features"))


def _write_survey(file: Path, survey: Survey) -> None:
    from safetensors.torch import save_file

    tensors = {"lengths": torch.tensor(survey.lengths)}
    if survey.features is not None:
        tensors["features"] = survey.features.contiguous()
    with whole(file) as beside:
        save_file(tensors, beside)
