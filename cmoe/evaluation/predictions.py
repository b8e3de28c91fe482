"""The folder of a run's predictions: who answers which test sample, and what was said.

    answers-<stage>-<digest>.parquet    answers, as they were generated in a stage
    stage-<stage>.parquet               who answers each test sample after it, and in which files
                                        the answers are; written last
    survey-<task>.safetensors           prompt lengths and features of a task's test samples

An answer belongs to the question's digest and the primitive's. Files of answers are named by their
contents: none takes another's place, and one that is lost or damaged is known to be.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from cmoe.common.files import whole
from cmoe.common.parsing import parse_json
from cmoe.common.run_files import RunFileError, digest_of, read_table, write_table
from cmoe.data.samples import Task
from cmoe.modeling.routers import BASE

_SAID = "cmoe"  # of a survey's metadata
ANSWERS, STAGE, SURVEY = "answers", "stage", "survey"
_AGAIN = "(of a finished run matrix.json, too), and the same command answers again what is missing"
_TYPES = {
    "by": pa.int32(),
    "stage": pa.int32(),
    "unknown": pa.bool_(),
    "scores": pa.list_(pa.float32()),
}


class Key(NamedTuple):
    """What an answer belongs to.

    Attributes:
        task: Its name.
        question_id: Of the test sample.
        question: Digest of what was asked.
        primitive: Digest of the primitive that was asked.
    """

    task: str
    question_id: str
    question: str
    primitive: str


@dataclass(frozen=True)
class Stage:
    """Where a task's test samples went after a stage; one entry per sample.

    Attributes:
        ids: Of the samples.
        questions: Digests of what they ask.
        by: Indices of the primitives that answer.
        unknown: Whether the locator knows of no task like it.
        scores: The locator's, by task.
    """

    ids: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    by: list[int] = field(default_factory=list)
    unknown: list[bool] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluated:
    """What a stage's file holds.

    Attributes:
        tasks: Where the test samples of each went.
        primitives: Digests of the base and of every primitive up to the stage.
        answers: Names of the files that hold the answers.
    """

    tasks: Mapping[str, Stage]
    primitives: Sequence[str]
    answers: Sequence[str]


# Answers


def write_answers(folder: Path, stage: int, answers: Mapping[Key, str]) -> str:
    """Keep what was said in a stage; the file's name."""
    columns: dict[str, list[Any]] = {n: [getattr(key, n) for key in answers] for n in Key._fields}
    columns |= {"text": [*answers.values()], "stage": [stage] * len(answers)}
    name = f"{ANSWERS}-{_label(stage)}-{digest_of(columns)[:16]}.parquet"
    write_table(folder / name, columns, _TYPES)
    return name


def kept_answers(folder: Path) -> dict[Key, str]:
    """Names of the files that hold the answers that a folder has, whoever needs them.

    Raises:
        RunFileError: A file is damaged.
    """
    kept: dict[Key, str] = {}
    for file in sorted(folder.glob(f"{ANSWERS}-*.parquet")):
        for key, _, _ in _read_answers(file):
            kept.setdefault(key, file.name)
    return kept


def unneeded_answers(folder: Path) -> set[str]:
    """Names of the files of answers that no stage needs, as a killed job leaves them.

    Raises:
        RunFileError: A stage's file is damaged.
    """
    named = {n for file in folder.glob(f"{STAGE}-*.parquet") for n in read_stage(file).answers}
    return {file.name for file in folder.glob(f"{ANSWERS}-*.parquet")} - named


def _read_answers(file: Path) -> Iterator[tuple[Key, str, int]]:
    """Answers and their stages."""
    columns, _ = read_table(file, (*Key._fields, "text", "stage"), lambda: _way_out(file))
    if digest_of(columns)[:16] != file.stem.rpartition("-")[2]:
        raise RunFileError(f"{file}: isn't what its name says (a digest); {_way_out(file)}")
    keys = map(Key, *(columns[name] for name in Key._fields))
    return zip(keys, columns["text"], columns["stage"], strict=True)


# Stages


def stage_file(folder: Path, stage: int) -> Path:
    """Which primitive answers which sample after a stage; there once the stage is evaluated."""
    return folder / f"{STAGE}-{_label(stage)}.parquet"


def _label(stage: int) -> str:
    return "base" if stage == BASE else f"{stage:03d}"


def write_stage(folder: Path, stage: int, evaluated: Evaluated) -> None:
    """Say that a stage is evaluated; its answers are in their files by then."""
    columns: dict[str, list[Any]] = {name: [] for name in ("task", *Stage.__dataclass_fields__)}
    for task, found in evaluated.tasks.items():
        columns["task"] += [task] * len(found.ids)
        for name, values in vars(found).items():
            columns[name] += values
    said = {"primitives": [*evaluated.primitives], "answers": [*evaluated.answers]}
    write_table(stage_file(folder, stage), columns, _TYPES, said)


def read_stage(file: Path) -> Evaluated:
    """What a stage's file holds.

    Raises:
        RunFileError: It is lost or damaged.
    """
    names = (*Stage.__dataclass_fields__,)
    remedy = f"restore it from a copy, or remove it {_AGAIN}"
    columns, said = read_table(file, ("task", *names), lambda: remedy)
    tasks: dict[str, Stage] = {}
    for task, *row in zip(columns["task"], *(columns[name] for name in names), strict=True):
        stage = tasks.setdefault(task, Stage())
        for values, value in zip(vars(stage).values(), row, strict=True):
            values.append(value)
    return Evaluated(tasks, said["primitives"], said["answers"])


def primitives_of(stage: int, digests: Mapping[int, str]) -> list[str]:
    """Digests of the base and of every primitive up to a stage."""
    return [digests[index] for index in range(BASE, stage + 1)]


# All of it


@dataclass(frozen=True)
class Predictions:
    """What the stages evaluated so far need.

    Attributes:
        folder: Where it was read.
        stages: By stage (-1 is the base) and task.
        texts: (task, question id, primitive's digest) -> what it said.
        generated: By stage, how many answers were generated.
    """

    folder: Path
    stages: Mapping[int, Mapping[str, Stage]]
    texts: Mapping[tuple[str, str, str], str]
    generated: Mapping[int, int]

    @property
    def learned(self) -> list[int]:
        """The stages evaluated after a task."""
        return [stage for stage in self.stages if stage != BASE]

    def text(self, task: str, question_id: str, primitive: str) -> str:
        """An answer.

        Raises:
            RunFileError: There is none: it isn't a wrong one.
        """
        try:
            return self.texts[task, question_id, primitive]
        except KeyError:
            raise RunFileError(
                f"{self.folder}: no file has what primitive {primitive[:12]} said to sample "
                f"{question_id!r} of {task}; remove the files {STAGE}-*.parquet {_AGAIN}"
            ) from None


def read_predictions(
    folder: Path, tasks: Sequence[Task], digests: Mapping[int, str]
) -> Predictions:
    """All that a run's figures are made of.

    Args:
        folder: Of the predictions.
        tasks: The stream.
        digests: Of every primitive so far, and of the base at -1; no later stage is read.

    Raises:
        RunFileError: A file is lost or damaged, or of other samples or primitives.
    """
    there = [s for s in range(BASE, len(digests) - 1) if stage_file(folder, s).is_file()]
    read = {number: read_stage(stage_file(folder, number)) for number in there}
    learned = [number for number in there if number != BASE]
    if learned != [*range(len(learned))]:
        lost = next(n for n in range(len(learned)) if n not in read)
        raise RunFileError(
            f"{stage_file(folder, lost)}: lost, though a later stage is there; the same command "
            "writes it again"
        )
    ids = {task.name: [sample.id for sample in task.test] for task in tasks}
    asked: dict[str, dict[str, str]] = {}  # by task and id: questions' digests
    for number, evaluated in read.items():
        _require_own(stage_file(folder, number), number, evaluated, ids, digests)
        for task, stage in evaluated.tasks.items():
            mine = dict(zip(stage.ids, stage.questions, strict=True))
            if asked.setdefault(task, mine) != mine:
                raise RunFileError(
                    f"{stage_file(folder, number)}: asked {task} other questions than an earlier "
                    f"stage; remove it {_AGAIN}"
                )
    texts: dict[tuple[str, str, str], str] = {}
    generated: Counter[int] = Counter()
    for name in dict.fromkeys(name for evaluated in read.values() for name in evaluated.answers):
        for key, text, stage_number in _read_answers(folder / name):
            generated[stage_number] += 1
            if asked.get(key.task, {}).get(key.question_id) == key.question:
                texts.setdefault((key.task, key.question_id, key.primitive), text)
    stages = {number: evaluated.tasks for number, evaluated in read.items()}
    return Predictions(folder, stages, texts, generated)


def _require_own(
    file: Path,
    number: int,
    evaluated: Evaluated,
    ids: Mapping[str, list[str]],
    digests: Mapping[int, str],
) -> None:
    """Refuse a stage of other primitives or of other test samples than these."""
    if evaluated.primitives != primitives_of(number, digests):
        raise RunFileError(f"{file}: of other primitives than the store's; remove it {_AGAIN}")
    answered = [*ids][: len(ids) if number == BASE else number + 1]
    for task in ids.keys() & {*answered, *evaluated.tasks}:
        if evaluated.tasks.get(task, Stage()).ids != ids[task]:
            raise RunFileError(
                f"{file}: of other test samples than {task} has now; remove it {_AGAIN}"
            )


def _way_out(file: Path) -> str:
    """What helps where a file of answers is lost or damaged: no stage may need it any more."""
    every = sorted(file.parent.glob(f"{STAGE}-*.parquet"))
    needing = [stage.name for stage in every if file.name in read_stage(stage).answers]
    gone = f"{', '.join(needing)} and what is left of it" if needing else "it"
    return f"restore it from a copy, or remove {gone} {_AGAIN}"


# Surveys


@dataclass(frozen=True)
class Survey:
    """What is known of a task's test samples before any answer.

    Attributes:
        lengths: Tokens of each prompt.
        features: What the locator sees of each, [n, d]; None where the method doesn't locate.
    """

    lengths: tuple[int, ...]
    features: Tensor | None


def survey_file(folder: Path, task: int) -> Path:
    """What is known of a task's test samples before any answer; there once it was looked for."""
    return folder / f"{SURVEY}-{task:03d}.safetensors"


def write_survey(file: Path, survey: Survey, questions: Sequence[str]) -> None:
    """Keep a survey, with the digests of what its samples ask."""
    from safetensors.torch import save_file

    tensors = {"lengths": torch.tensor(survey.lengths)}
    if survey.features is not None:
        tensors["features"] = survey.features.contiguous()
    said = json.dumps({"questions": _joined(questions), "digest": _digest(tensors)})
    with whole(file) as beside:
        save_file(tensors, beside, {_SAID: said})


def read_survey(file: Path, questions: Sequence[str] | None = None) -> Survey | None:
    """A survey; None if there is none, or it is of other questions than these.

    Args:
        file: Where it would be.
        questions: Digests of what the samples ask; None takes it whatever they ask.

    Raises:
        RunFileError: It is damaged.
    """
    from safetensors import safe_open

    if not file.is_file():
        return None
    remedy = f"remove it and {STAGE}-{_label(BASE)}.parquet {_AGAIN}"
    try:
        with safe_open(file, "pt") as opened:
            said = parse_json((opened.metadata() or {}).get(_SAID, "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        same = said.get("digest", _digest(tensors)) == _digest(tensors)
        lengths = tuple(tensors["lengths"].tolist())
    except Exception as error:  # whatever comes of decoding what isn't whole
        raise RunFileError(f"{file}: damaged: {error}; {remedy}") from error
    if not same:
        raise RunFileError(f"{file}: damaged: its digest is another; {remedy}")
    if questions is not None and said.get("questions") != _joined(questions):
        return None
    return Survey(lengths, tensors.get("features"))


def _joined(questions: Sequence[str]) -> str:
    return sha256("\n".join(questions).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}".encode())
        digest.update(tensors[name].cpu().numpy().tobytes())
    return digest.hexdigest()
