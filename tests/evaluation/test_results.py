"""From a folder of answers to figures: a small stream whose figures are worked out by hand."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmoe.common.run_files import RunFileError, write_json
from cmoe.data.samples import Sample, Task
from cmoe.data.settings import DataConfig
from cmoe.evaluation import predictions
from cmoe.evaluation.coin_predictions import write_coin
from cmoe.evaluation.predictions import (
    Evaluated,
    Key,
    Stage,
    primitives_of,
    read_stage,
    stage_file,
)
from cmoe.evaluation.predictions import read_predictions as read_all
from cmoe.evaluation.results import Facts, results, table
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.evaluation.targets import stream_targets, target
from cmoe.modeling.routers import BASE
from cmoe.tasks.answer_files import read_predictions
from cmoe.tasks.judge import judge
from cmoe.tasks.scorers import Mode, Target

TASKS = tuple(
    Task(name, (), tuple(Sample(i, "?", answer) for i, answer in test.items()))
    for name, test in {
        "GQA": {"g1": "yes", "g2": "no", "g3": "red", "g4": "blue"},
        "ImageNet": {"1": "tench", "2": "shark"},
        "VQAv2": {"1": "2", "2": "yes", "3": "no", "4": "cat"},
    }.items()
)
TARGETS = {task.name: {sample.id: Target(sample.answer) for sample in task.test} for task in TASKS}
DIGESTS = {BASE: "base", 0: "p0", 1: "p1", 2: "p2"}

# By stage the answers that it asked for: task, question, who answers, text.
Answer = tuple[str, str, int, str]
ANSWERS: dict[int, list[Answer]] = {
    BASE: [
        ("GQA", "g1", BASE, "Yes."),  # right in both modes
        ("GQA", "g2", BASE, "maybe"),
        ("GQA", "g3", BASE, "blue"),
        ("GQA", "g4", BASE, ""),
        ("ImageNet", "1", BASE, ""),  # right officially: an empty string is in any answer
        ("ImageNet", "2", BASE, "a shark"),  # right in both
        ("VQAv2", "1", BASE, "2."),  # wrong officially: nothing is stripped
        ("VQAv2", "2", BASE, "YES"),
        ("VQAv2", "3", BASE, "yes"),
        ("VQAv2", "4", BASE, "dog"),
    ],
    0: [
        ("GQA", "g1", 0, "yes"),
        ("GQA", "g2", 0, "no"),
        ("GQA", "g3", 0, "red"),
        ("GQA", "g4", 0, "green"),
        ("ImageNet", "1", 0, "tench"),
        ("ImageNet", "2", 0, "whale"),
    ],
    1: [
        ("GQA", "g1", 1, "no"),
        ("GQA", "g4", 1, "blue"),  # located wrong, and yet right
        ("ImageNet", "1", 1, "tench"),
        ("ImageNet", "2", 1, "shark"),
        ("VQAv2", "1", 0, "2"),
        ("VQAv2", "2", 1, "no"),
        ("VQAv2", "3", 0, "no"),
        ("VQAv2", "4", 1, "dog"),
    ],
    2: [
        ("GQA", "g3", 2, "red"),
        ("ImageNet", "2", 2, "ray"),
        ("VQAv2", "1", 2, "2"),
        ("VQAv2", "2", 2, "Yes"),
        ("VQAv2", "3", 2, "no"),
        ("VQAv2", "4", 2, "Cat."),  # right in strict mode alone
    ],
}
# By stage who answers which task's samples, the next task's included.
LOCATED: dict[int, dict[str, list[int]]] = {
    BASE: {"GQA": [BASE] * 4, "ImageNet": [BASE] * 2, "VQAv2": [BASE] * 4},
    0: {"GQA": [0, 0, 0, 0], "ImageNet": [0, 0]},
    1: {"GQA": [1, 0, 0, 1], "ImageNet": [1, 0], "VQAv2": [0, 1, 0, 1]},
    2: {"GQA": [1, 0, 2, 0], "ImageNet": [1, 2], "VQAv2": [2, 2, 0, 2]},
}
FACTS = Facts(
    method="cmoe",
    digests=DIGESTS,
    parameters=[{"experts": 10 + i, "routers": 2, "locator": 3} for i in range(3)],
    answering=[0, 1, 2],
    base_parameters=1000,
    flops={BASE: 500, 0: 10, 1: 20, 2: 30},
    similarity=[0.5, None],
    seconds={"GQA": {"train": 2.0}, "ImageNet": {"probe": 1.0, "train": 2.0}},
    locates=True,
)


def key(task: str, question: str, by: int) -> Key:
    return Key(task, question, asked(task, question), DIGESTS[by])


def asked(task: str, question: str) -> str:
    """Stands for a digest of what the sample asks."""
    return f"{task}/{question}?"


def write_answers(folder: Path, stage: int, rows: list[Answer]) -> str:
    return predictions.write_answers(folder, stage, {key(*row[:3]): row[3] for row in rows})


def write_stage(
    folder: Path, stage: int, located: Mapping[str, list[int]], answers: Sequence[str]
) -> None:
    tasks = {}
    for task in TASKS:
        if by := located.get(task.name, [])[: len(task.test)]:
            ids = [sample.id for sample in task.test]
            scores = [[] if stage == BASE else [0.5] * (stage + 1) for _ in by]
            questions = [asked(task.name, id_) for id_ in ids]
            tasks[task.name] = Stage(ids, questions, by, [False] * len(by), scores)
    predictions.write_stage(folder, stage, Evaluated(tasks, primitives_of(stage, DIGESTS), answers))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the answers, in the folder of a run called `hand`."""
    answered = tmp_path / "hand" / "predictions"
    answered.mkdir(parents=True)
    names: list[str] = []
    for stage, rows in ANSWERS.items():
        names.append(write_answers(answered, stage, rows))
        write_stage(answered, stage, LOCATED[stage], names)
    return answered


def file_of(folder: Path, stage: int) -> Path:
    """The answers of a stage."""
    (file,) = folder.glob(f"answers-{'base' if stage == BASE else f'{stage:03d}'}-*.parquet")
    return file


def until(stage: int, facts: Facts = FACTS) -> Facts:
    """What is known after a stage."""
    return replace(
        facts,
        digests={i: d for i, d in facts.digests.items() if i <= stage},
        parameters=facts.parameters[: stage + 1],
        answering=facts.answering[: stage + 1],
        flops={i: n for i, n in facts.flops.items() if i <= stage},
    )


def test_a_streams_figures_are_those_worked_out_by_hand(folder: Path) -> None:
    found = results(folder, TASKS, TARGETS, FACTS, "official")
    assert found["tasks"] == ["GQA", "ImageNet", "VQAv2"]
    assert (found["method"], found["scoring"]) == ("cmoe", "official")
    assert found["zero_shot"] == [25, 100, 25]
    assert found["before"] == [25, 50, 50], "each just before it was learned"
    assert found["located"] == [[75, None, None], [75, 50, None], [50, 50, 75]]
    assert found["oracle"] == [[75, None, None], [75, 100, None], [75, 100, 75]]
    assert found["metrics"] == pytest.approx(
        {
            "last": (50 + 50 + 75) / 3,
            "mft": (75 + 50 + 75) / 3,
            "maa": (75 + (75 + 50) / 2 + (50 + 50 + 75) / 3) / 3,
            "bwt": (-25 + 0 + 0) / 3,
            "bwt_t_minus_1": -25 / 2,
            "fwt": ((50 - 100) + (50 - 25)) / 2,
        }
    )
    oracle = found["oracle_metrics"]
    assert oracle["bwt"] == oracle["bwt_t_minus_1"] == 0
    assert oracle["last"] == pytest.approx((75 + 100 + 75) / 3)
    # A mean over tasks: 6 of 10 samples would be 60.
    assert found["location"]["accuracy"] == pytest.approx((50 + 50 + 75) / 3, abs=1e-6)
    assert found["location"]["confusion"] == [[2, 1, 1], [0, 1, 1], [1, 0, 3]]
    assert found["generated"] == {"base": 10, "0": 6, "1": 8, "2": 6}


def test_strict_figures_stand_beside_the_official_ones(folder: Path) -> None:
    strict = results(folder, TASKS, TARGETS, FACTS, "official")["strict"]
    assert strict["zero_shot"] == [25, 50, 50]
    assert strict["located"] == [[75, None, None], [75, 50, None], [50, 50, 100]]
    assert strict["oracle"] == [[75, None, None], [75, 100, None], [75, 100, 100]]
    assert strict["metrics"]["last"] == pytest.approx((50 + 50 + 100) / 3)
    # The other way round the same two tables, with their names changed.
    official, turned = (
        results(folder, TASKS, TARGETS, FACTS, mode) for mode in ("official", "strict")
    )
    assert turned["scoring"] == "strict"
    assert "strict" not in turned
    for name, value in strict.items():
        assert turned[name] == value
        assert turned["official"][name] == official[name]
    assert turned["location"] == official["location"], "scorers don't tell tasks apart"


def test_costs_are_counted_by_task_and_in_all(folder: Path) -> None:
    found = results(folder, TASKS, TARGETS, FACTS, "official")
    parameters = found["parameters"]
    assert parameters["base"] == 1000
    assert parameters["tasks"]["ImageNet"] == {"experts": 11, "routers": 2, "locator": 3}
    assert list(parameters["tasks"]) == found["tasks"]
    assert parameters["added"] == 15 + 16 + 17, "every task's stays"
    assert found["flops_per_token"] == {
        "base": 500,
        "added": {"GQA": 10, "ImageNet": 20, "VQAv2": 30},
    }
    assert found["seconds"] == FACTS.seconds
    assert json.loads(json.dumps(found)) == found


def test_a_method_that_does_not_locate_has_no_oracle(tmp_path: Path) -> None:
    """As a sequential LoRA: the latest stage answers all, and everything is asked again."""
    said = {
        "GQA": [["yes", "no", "red", "x"], ["yes", "no", "x", "x"], ["x", "no", "x", "x"]],
        "ImageNet": [[], ["tench", "shark"], ["tench", "x"]],
        "VQAv2": [[], [], ["2", "yes", "x", "x"]],
    }
    names: list[str] = []
    for stage in range(3):
        rows = [
            (task.name, sample.id, stage, text)
            for task in TASKS[: stage + 1]
            for sample, text in zip(task.test, said[task.name][stage], strict=True)
        ]
        names.append(write_answers(tmp_path, stage, rows))
        write_stage(tmp_path, stage, {t.name: [stage] * 4 for t in TASKS[: stage + 1]}, names)
    found = results(
        tmp_path,
        TASKS,
        TARGETS,
        replace(FACTS, method="lora", locates=False, answering=[2]),
        "official",
    )
    assert found["located"] == [[75, None, None], [50, 100, None], [25, 50, 50]]
    assert found["oracle"] is found["oracle_metrics"] is found["location"] is None
    assert found["strict"]["oracle"] is None
    assert found["metrics"]["bwt"] == pytest.approx((-50 - 50 + 0) / 3)
    assert found["zero_shot"] is None, "the base was never asked"
    assert found["generated"] == {"base": 0, "0": 4, "1": 6, "2": 10}
    assert found["parameters"]["added"] == 17, "only the latest adapter answers"


def test_a_run_on_its_way_has_the_rows_that_it_has(folder: Path) -> None:
    whole = results(folder, TASKS, TARGETS, FACTS, "official")
    stage_file(folder, 2).unlink()
    for facts in (FACTS, until(2), until(1)):  # learned, but not evaluated; or not yet learned
        found = results(folder, TASKS, TARGETS, facts, "official")
        assert found["located"] == whole["located"][:2]
        assert found["oracle"] == whole["oracle"][:2]
        assert found["zero_shot"] == whole["zero_shot"]
        assert found["metrics"]["bwt"] == 0
        assert found["metrics"]["last"] == (75 + 50) / 2
        assert found["location"] == {"accuracy": 50, "confusion": [[2, 2], [1, 1]]}
    assert list(found["parameters"]["tasks"]) == list(found["flops_per_token"]["added"])
    assert list(found["parameters"]["tasks"]) == ["GQA", "ImageNet"]

    stage_file(folder, 1).unlink()
    found = results(folder, TASKS, TARGETS, until(0), "official")
    assert found["located"] == whole["located"][:1]
    assert found["metrics"]["bwt_t_minus_1"] is None
    assert found["location"] == {"accuracy": 100, "confusion": [[4]]}

    stage_file(folder, 0).unlink()
    found = results(folder, TASKS, TARGETS, until(BASE), "official")
    assert found["located"] == found["oracle"] == []
    assert found["metrics"] is found["location"] is None
    assert found["zero_shot"] == whole["zero_shot"]
    assert found["parameters"]["added"] == 0


def test_the_first_answer_counts_and_all_are_counted(folder: Path) -> None:
    before = results(folder, TASKS, TARGETS, FACTS, "official")
    names = read_stage(stage_file(folder, 2)).answers
    again = write_answers(folder, 2, [("GQA", "g1", 0, "no"), ("VQAv2", "1", 2, "3")])
    write_stage(folder, 2, LOCATED[2], [*names, again])
    found = results(folder, TASKS, TARGETS, FACTS, "official")
    assert found["located"] == before["located"]
    assert found["generated"]["2"] == before["generated"]["2"] + 2
    assert read_all(folder, TASKS, DIGESTS).text("GQA", "g1", "p0") == "yes"


# An answer that is missing is no wrong one: the file is named, and what helps


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


def test_what_is_written_is_whole_and_the_table_shows_it(folder: Path, tmp_path: Path) -> None:
    found = results(folder, TASKS, TARGETS, FACTS, "official")
    file = tmp_path / "matrix.json"
    write_json(file, found)
    assert json.loads(file.read_text(encoding="utf-8")) == found
    before = set(tmp_path.iterdir())
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text(encoding="utf-8")) == found
    assert set(tmp_path.iterdir()) == before, "nothing is left beside it"

    head, *rows, title, figures = table(found).splitlines()
    assert head.split()[0] == "task"
    cells = {row.split()[0]: [float(x) for x in row.split()[1:]] for row in rows}
    # Before the stream, just learned, at the end, and with the true task given.
    assert cells == {
        "GQA": [25, 75, 50, 75],
        "ImageNet": [100, 50, 50, 100],
        "VQAv2": [25, 75, 75, 75],
    }
    assert title.startswith("cmoe, official")
    for figure in ("LAST 58.3", "MFT 66.7", "MAA 65.3", "BWT -8.3", "location 58.3", "4.8%"):
        assert figure in figures


def test_a_scorer_learns_the_choices_and_the_pictures_size() -> None:
    question = "Which bar is highest?\nA. red\nB. blue\nC. green\nAnswer with the letter."
    assert target(Sample("1", question, "B")).choices == 3
    assert target(Sample("1", "What is it? A. nothing", "x")).choices is None
    boxed = target(Sample("1", "Where?", "[0, 0, 1, 1]", size=(640, 480)))
    assert (boxed.answer, boxed.size) == ("[0, 0, 1, 1]", (640, 480))


def test_a_letter_outside_the_choices_is_wrong(tmp_path: Path) -> None:
    two = "Which?\nA. red\nB. blue\nAnswer."
    tests = (Sample("1", two, "B"), Sample("2", two, "C"), Sample("3", "Which?", "C"))
    tasks = (Task("ScienceQA", (), tests),)
    rows = [("ScienceQA", str(i), BASE, letter) for i, letter in ((1, "B"), (2, "C"), (3, "C"))]
    name = write_answers(tmp_path, BASE, rows)
    ids = ["1", "2", "3"]
    questions = [asked("ScienceQA", id_) for id_ in ids]
    stage = Stage(ids, questions, [BASE] * 3, [False] * 3, [[]] * 3)
    evaluated = Evaluated({"ScienceQA": stage}, [DIGESTS[BASE]], [name])
    predictions.write_stage(tmp_path, BASE, evaluated)
    targets = stream_targets(tasks, DataConfig(), EvaluationConfig())
    found = results(tmp_path, tasks, targets, until(BASE), "official")
    assert found["zero_shot"] == [pytest.approx(200 / 3, abs=1e-6)]


def test_other_targets_give_other_figures(folder: Path) -> None:
    """As an answer file's: right is what it says."""
    targets = TARGETS | {"GQA": {i: Target("red") for i in TARGETS["GQA"]}}
    found = results(folder, TASKS, targets, FACTS, "official")
    assert [row[0] for row in found["located"]] == [25, 25, 25]
    assert found["strict"]["located"][2][0] == 25
    assert found["located"][2][1:] == [50, 75], "of the other tasks as before"


# The latest answers in CoIN's own format


def coin_rows(run: Path, task: str) -> list[dict[str, Any]]:
    lines = (run / "coin" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_coins_files_hold_the_latest_stages_located_answers(folder: Path) -> None:
    run = folder.parent
    write_coin(run, TASKS, DIGESTS, "cmoe")
    assert sorted(f.name for f in (run / "coin").iterdir()) == [
        "GQA.jsonl",
        "ImageNet.jsonl",
        "VQAv2.jsonl",
    ]
    said = {task.name: [row["text"] for row in coin_rows(run, task.name)] for task in TASKS}
    assert said == {
        "GQA": ["no", "no", "red", "green"],
        "ImageNet": ["tench", "ray"],
        "VQAv2": ["2", "Yes", "no", "Cat."],
    }
    rows = coin_rows(run, "GQA")
    assert [row["question_id"] for row in rows] == ["g1", "g2", "g3", "g4"]
    by = [row["metadata"]["answered_by"] for row in rows]
    assert by == ["ImageNet", "GQA", "VQAv2", "GQA"]
    assert {(row["prompt"], row["model_id"]) for row in rows} == {("?", "hand/cmoe/2")}


def test_coins_files_give_the_matrixs_last_row(folder: Path) -> None:
    run = folder.parent
    for stage in (2, 1, 0):
        digests = until(stage).digests
        write_coin(run, TASKS, digests, "cmoe")
        found = results(folder, TASKS, TARGETS, until(stage), "official")
        modes: tuple[tuple[Mode, Any], ...] = (("official", found), ("strict", found["strict"]))
        for mode, tables in modes:
            for task, accuracy in zip(TASKS[: stage + 1], tables["located"][-1], strict=False):
                said = read_predictions(run / "coin" / f"{task.name}.jsonl")
                judged = judge(task.name, mode, said, TARGETS[task.name])
                assert judged.accuracy == pytest.approx(accuracy, abs=1e-6)
                assert (judged.samples, judged.missing, judged.unknown) == (len(said), 0, 0)


def test_coins_files_are_of_the_tasks_learned_and_the_same_when_written_again(
    folder: Path,
) -> None:
    run = folder.parent
    write_coin(run, TASKS, until(BASE).digests, "cmoe")
    assert not (run / "coin").exists(), "nothing was learned"
    stage_file(folder, 2).unlink()
    write_coin(run, TASKS, DIGESTS, "cmoe")  # the third task was learned, but not evaluated
    files = sorted((run / "coin").iterdir())
    assert [f.name for f in files] == ["GQA.jsonl", "ImageNet.jsonl"]
    assert coin_rows(run, "GQA")[0]["model_id"] == "hand/cmoe/1"
    before = [f.read_bytes() for f in files]
    write_coin(run, TASKS, DIGESTS, "cmoe")
    assert [f.read_bytes() for f in files] == before
    assert sorted((run / "coin").iterdir()) == files


def test_an_answer_that_the_base_gave_is_marked_as_its(tmp_path: Path) -> None:
    """A sample that no task claims."""
    (tmp_path / "predictions").mkdir()
    name = write_answers(tmp_path / "predictions", 0, [("GQA", "g1", BASE, "yes")])
    stage = Stage(["g1"], [asked("GQA", "g1")], [BASE], [True], [[0.5]])
    evaluated = Evaluated({"GQA": stage}, primitives_of(0, DIGESTS), [name])
    predictions.write_stage(tmp_path / "predictions", 0, evaluated)
    task = replace(TASKS[0], test=TASKS[0].test[:1])
    write_coin(tmp_path, (task,), until(0).digests, "cmoe")
    (row,) = coin_rows(tmp_path, "GQA")
    assert (row["text"], row["metadata"]) == ("yes", {"answered_by": "base"})
