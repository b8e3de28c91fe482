"""An answer belongs to what was asked: the base answers a few tests, and some of them change."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cmoe.common.group import Group
from cmoe.common.run_files import RunFileError
from cmoe.data.batches import Collator
from cmoe.data.coin import read_tasks
from cmoe.data.loader import Loader
from cmoe.data.samples import Sample, Task
from cmoe.data.session import Session
from cmoe.data.settings import DataConfig
from cmoe.evaluation.predict import Predictor
from cmoe.evaluation.predictions import (
    kept_answers,
    read_predictions,
    read_stage,
    stage_file,
    survey_file,
    write_stage,
)
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.methods.baselines.zero_shot import ZeroShot
from cmoe.mini.tasks import write_mini_coin
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import MINI_BASE

TASKS = ("OCRVQA", "VizWiz")
TESTS = 4
Base = tuple[ZeroShot, Collator]


@pytest.fixture(scope="module")
def base() -> Base:
    model, processor = load_base(str(MINI_BASE), dtype=torch.float32)
    return ZeroShot(model), Collator(processor, 256, 4)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "data"
    write_mini_coin(root, train=8, test=TESTS)
    return root


@pytest.fixture
def tasks(generated: Path, tmp_path: Path) -> tuple[Task, ...]:
    shutil.copytree(generated, tmp_path / "data")
    return read_tasks(DataConfig(str(tmp_path / "data"), tasks=TASKS), 0)


class Answering:
    """A run's predictions, which the base alone makes."""

    def __init__(self, folder: Path, base: Base) -> None:
        self.folder, (self.method, self.collator) = folder / "predictions", base
        self.folder.mkdir()
        self.digests = {BASE: self.method.base_digest}

    def predictor(self, tasks: Sequence[Task], **config: Any) -> Predictor:
        return Predictor(
            self.method,
            Session(Group(), self.collator, Loader(self.collator), batch_size=4),
            tasks,
            str(self.folder.parent / "data"),
            self.folder,
            EvaluationConfig(batch_size=4, max_new_tokens=4, flush_every=1, **config),
            emit=lambda **_: None,
        )

    def evaluate(self, tasks: Sequence[Task], **config: Any) -> int:
        """As a run that starts; how many answers were generated."""
        before, predictor = len(kept_answers(self.folder)), self.predictor(tasks, **config)
        if not predictor.done(BASE, self.digests):
            write_stage(self.folder, BASE, predictor.evaluate(BASE, self.digests))
        return len(kept_answers(self.folder)) - before

    def texts(self, tasks: Sequence[Task]) -> Mapping[tuple[str, str, str], str]:
        return read_predictions(self.folder, tasks, self.digests).texts


@pytest.fixture
def answering(tmp_path: Path, base: Base, tasks: tuple[Task, ...]) -> Answering:
    """What the base said to all tests."""
    found = Answering(tmp_path, base)
    assert found.evaluate(tasks) == TESTS * len(TASKS)
    assert found.evaluate(tasks) == 0
    return found


def changed(tasks: Sequence[Task], change: Callable[[list[Sample]], list[Sample]]) -> list[Task]:
    """The stream with other tests of its first task."""
    first, *others = tasks
    return [replace(first, test=tuple(change(list(first.test)))), *others]


def exchanged(tests: list[Sample]) -> list[Sample]:
    """Two questions under each other's ids."""
    one, other, *more = tests
    return [replace(other, id=one.id), replace(one, id=other.id), *more]


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda tests: [replace(tests[0], text="What is it?"), *tests[1:]], 1),
        (lambda tests: [replace(tests[0], images=tests[1].images), *tests[1:]], 1),
        (lambda tests: [replace(tests[0], images=()), *tests[1:]], 1),
        (exchanged, 2),
        (lambda tests: [*tests[:-1]], 0),  # a row was removed
        (lambda tests: tests[1:], 0),
        (lambda tests: [*tests, replace(tests[0], id="new")], 1),
        (lambda tests: tests[::-1], 0),
        (lambda tests: [replace(tests[0], id="new"), *tests[1:]], 1),
    ],
)
def test_what_is_asked_otherwise_is_answered_again_and_nothing_else(
    answering: Answering,
    tasks: tuple[Task, ...],
    base: Base,
    tmp_path: Path,
    change: Any,
    count: int,
) -> None:
    other = changed(tasks, change)
    assert not answering.predictor(other).done(BASE, answering.digests)
    assert answering.evaluate(other) == count
    (tmp_path / "afresh").mkdir()
    afresh = Answering(tmp_path / "afresh", base)
    afresh.evaluate(other)
    assert answering.texts(other) == afresh.texts(other)
    assert answering.evaluate(other) == 0


def test_a_replaced_image_is_another_question(
    answering: Answering, tasks: tuple[Task, ...]
) -> None:
    """Also one of the same size in bytes; the survey is looked for again, too."""
    image, survey = tasks[0].test[0].images[0], survey_file(answering.folder, 0)
    assert isinstance(image, Path)
    before = survey.read_bytes()
    os.utime(image)
    assert answering.evaluate(tasks) == 1
    assert survey.read_bytes() != before
    assert survey_file(answering.folder, 1).stat().st_mtime_ns < survey.stat().st_mtime_ns


def test_what_is_right_is_no_part_of_the_question(
    answering: Answering, tasks: tuple[Task, ...]
) -> None:
    other = changed(tasks, lambda tests: [replace(s, answer="x", size=(3, 4)) for s in tests])
    assert answering.predictor(other).done(BASE, answering.digests)


def test_another_primitive_is_asked_afresh(answering: Answering, tasks: tuple[Task, ...]) -> None:
    answering.digests = {BASE: "another base"}
    assert not answering.predictor(tasks).done(BASE, answering.digests)
    assert answering.evaluate(tasks) == TESTS * len(TASKS)


def test_killed_before_the_stage_was_written_no_answer_is_generated_again(
    answering: Answering, tasks: tuple[Task, ...]
) -> None:
    file = stage_file(answering.folder, BASE)
    before = read_stage(file)
    file.unlink()
    assert answering.evaluate(tasks) == 0
    assert read_stage(file) == before


def test_a_lost_file_of_answers_comes_back_by_what_its_error_says(
    answering: Answering, tasks: tuple[Task, ...]
) -> None:
    said, (lost, *others) = answering.texts(tasks), sorted(answering.folder.glob("answers-*"))
    assert others, "more than one file"
    lost.unlink()
    with pytest.raises(RunFileError, match=rf"{lost.name}: lost; .* stage-base\.parquet"):
        answering.texts(tasks)
    stage_file(answering.folder, BASE).unlink()
    assert 0 < answering.evaluate(tasks) < TESTS * len(TASKS)
    assert answering.texts(tasks) == said
    assert lost.is_file(), "the same answers have the same name"


@pytest.mark.parametrize("how", ["truncated", "garbage", "empty", "a changed byte"])
def test_a_damaged_survey_is_named(answering: Answering, tasks: tuple[Task, ...], how: str) -> None:
    file = survey_file(answering.folder, 0)
    data = file.read_bytes()
    spoiled = {
        "truncated": data[:-3],
        "garbage": b"garbage" * 99,
        "empty": b"",
        "a changed byte": data[:-1] + bytes([data[-1] ^ 1]),
    }
    file.write_bytes(spoiled[how])
    stage_file(answering.folder, BASE).unlink()
    with pytest.raises(RunFileError, match=rf"{file.name}: damaged: .*remove it"):
        answering.evaluate(tasks)
    file.unlink()
    answering.evaluate(tasks)
    assert file.read_bytes() == data


def test_an_earlier_versions_answers_are_refused_by_name(
    answering: Answering, tasks: tuple[Task, ...]
) -> None:
    columns = {"task": [TASKS[0]], "question_id": ["1"], "primitive": ["p"], "text": ["yes"]}
    file = answering.folder / "answers-00000.parquet"
    pq.write_table(pa.table(columns | {"stage": [0]}), file)
    stage_file(answering.folder, BASE).unlink()
    with pytest.raises(RunFileError, match=rf"{file.name}: .*earlier version.*remove all of"):
        answering.evaluate(tasks)


def test_without_the_cache_all_are_generated_again(
    answering: Answering, tasks: tuple[Task, ...]
) -> None:
    said = answering.texts(tasks)
    stage_file(answering.folder, BASE).unlink()
    before = {file: file.read_bytes() for file in answering.folder.glob("answers-*")}
    again = answering.predictor(tasks, cache=False).evaluate(BASE, answering.digests)
    write_stage(answering.folder, BASE, again)
    assert {file: file.read_bytes() for file in answering.folder.glob("answers-*")} == before
    assert answering.texts(tasks) == said
    names = json.dumps(read_stage(stage_file(answering.folder, BASE)).answers)
    assert all(file.name in names for file in before)
