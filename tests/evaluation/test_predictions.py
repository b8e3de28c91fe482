"""An answer that is missing is no wrong one: the file is named, and what helps."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.answers import (
    ANSWERS,
    DIGESTS,
    FACTS,
    LOCATED,
    TARGETS,
    TASKS,
    key,
    write_answers,
    write_stage,
)

from cmoe.common.run_files import RunFileError
from cmoe.data.samples import Task
from cmoe.evaluation import predictions
from cmoe.evaluation.coin_predictions import write_coin
from cmoe.evaluation.predictions import (
    read_stage,
    stage_file,
)
from cmoe.evaluation.results import Facts, results
from cmoe.modeling.routers import BASE


def file_of(folder: Path, stage: int) -> Path:
    """The answers of a stage."""
    (file,) = folder.glob(f"answers-{'base' if stage == BASE else f'{stage:03d}'}-*.parquet")
    return file


def refused(folder: Path, facts: Facts = FACTS, tasks: Sequence[Task] = TASKS) -> str:
    """What results are refused with; CoIN's files are, too."""
    with pytest.raises(RunFileError) as raised:
        results(folder, tasks, TARGETS, facts, "official")
    with pytest.raises(RunFileError):
        write_coin(folder.parent, tasks, facts.digests, "cmoe")
    assert not (folder.parent / "coin").exists(), "nothing is half written"
    return str(raised.value)


@pytest.mark.parametrize("stage", [BASE, 0, 1, 2])
def test_a_lost_file_of_answers_is_named_with_all_stages_that_need_it(
    folder: Path, stage: int
) -> None:
    file = file_of(folder, stage)
    file.unlink()
    message = refused(folder)
    assert f"{file}: lost" in message
    for other in ANSWERS:
        assert (stage_file(folder, other).name in message) == (other >= stage)


def test_a_new_file_never_takes_a_lost_ones_name(folder: Path) -> None:
    file_of(folder, 0).unlink()
    there = set(folder.iterdir())
    write_answers(folder, 2, [("GQA", "g1", 2, "yes")])
    write_answers(folder, 2, [("GQA", "g1", 2, "no")])
    assert len(set(folder.iterdir()) - there) == 2


def spoil(file: Path, how: str) -> None:
    data = file.read_bytes()
    match how:
        case "empty":
            file.write_bytes(b"")
        case "truncated":
            file.write_bytes(data[: len(data) // 2])
        case "garbage":
            file.write_bytes(b"\0garbage" * 99)
        case "a folder":
            file.unlink()
            file.mkdir()
        case "others' columns":
            pq.write_table(pa.table({"task": ["GQA"], "text": ["yes"]}), file)
        case "one answer less":
            pq.write_table(pq.read_table(file)[1:], file)
        case "other values":
            table = pq.read_table(file)
            at = table.column_names.index(
                "question_id" if "question_id" in table.column_names else "ids"
            )
            column = pa.array(["x"] * len(table))
            pq.write_table(table.set_column(at, table.column_names[at], column), file)


SPOILED = (
    "empty",
    "truncated",
    "garbage",
    "a folder",
    "others' columns",
    "one answer less",
    "other values",
)


@pytest.mark.parametrize("how", SPOILED)
def test_a_damaged_file_of_answers_or_of_a_stage_is_named(folder: Path, how: str) -> None:
    whole = {file: file.read_bytes() for file in folder.iterdir()}
    for file in (file_of(folder, 1), stage_file(folder, 1)):
        spoil(file, how)
        if file.is_dir():
            continue  # not seen as a file, which is another message
        message = refused(folder)
        assert message.startswith(f"{file}: ")
        assert "remove" in message
        file.write_bytes(whole[file])
    if not file.is_dir():
        results(folder, TASKS, TARGETS, FACTS, "official")


def test_flipped_bits_change_no_figure_in_silence(folder: Path) -> None:
    """Of answers and stages: either nothing depends on the byte, or it is noticed."""
    before, named = results(folder, TASKS, TARGETS, FACTS, "official"), set()
    files = file_of(folder, 1), stage_file(folder, 2)
    for file in files:
        data = file.read_bytes()
        count = int(os.environ.get("CMOE_FUZZ", "100"))
        generator = random.Random(file.name.partition("-")[0])
        for _ in range(count):
            at, bit = generator.randrange(len(data)), 1 << generator.randrange(8)
            file.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            try:
                found = results(folder, TASKS, TARGETS, FACTS, "official")
            except RunFileError as error:
                named.add(str(error).partition(":")[0])
            else:
                assert found == before
        file.write_bytes(data)
    assert named == {*map(str, files)}


def test_a_lost_stage_before_a_later_one_is_named(folder: Path) -> None:
    stage_file(folder, 1).unlink()
    assert f"{stage_file(folder, 1)}: lost" in refused(folder)


def test_an_answer_that_no_file_has_is_named(folder: Path) -> None:
    """A stage whose files are whole, but aren't all that it needs."""
    names = read_stage(stage_file(folder, 0)).answers[:-1]
    for stage in range(3):
        write_stage(folder, stage, LOCATED[stage], names)
    message = refused(folder)
    assert "primitive p0 said to sample 'g1' of GQA" in message
    assert str(folder) in message


def test_stages_of_other_samples_or_primitives_are_refused(folder: Path) -> None:
    """Also where there are as many; rows that were removed are no traceback."""
    fewer = (replace(TASKS[0], test=TASKS[0].test[1:]), *TASKS[1:])
    other = (replace(TASKS[0], test=TASKS[0].test[::-1]), *TASKS[1:])
    for tasks in (fewer, other):
        message = refused(folder, tasks=tasks)
        assert f"{stage_file(folder, BASE)}: of other test samples than GQA" in message
    facts = replace(FACTS, digests=DIGESTS | {1: "q1"})
    assert f"{stage_file(folder, 1)}: of other primitives" in refused(folder, facts)


def test_answers_to_another_question_of_that_id_are_no_answers(folder: Path) -> None:
    other = {
        key("GQA", sample.id, 0)._replace(question="other"): sample.answer
        for sample in TASKS[0].test
    }
    name = predictions.write_answers(folder, 0, other)
    base = read_stage(stage_file(folder, BASE)).answers
    write_stage(folder, 0, LOCATED[0], [*base, name])
    for stage in (1, 2):
        write_stage(folder, stage, LOCATED[stage], [*base, name])
    assert "primitive p0 said to sample 'g1' of GQA" in refused(folder)
