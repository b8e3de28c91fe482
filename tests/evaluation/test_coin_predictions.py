"""The latest answers in CoIN's own format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.answers import DIGESTS, TARGETS, TASKS, asked, until, write_answers

from cmoe.evaluation import predictions
from cmoe.evaluation.coin_predictions import write_coin
from cmoe.evaluation.predictions import (
    Evaluated,
    Stage,
    primitives_of,
    stage_file,
)
from cmoe.evaluation.results import results
from cmoe.modeling.routers import BASE
from cmoe.tasks.answer_files import read_predictions
from cmoe.tasks.judge import judge
from cmoe.tasks.scorers import Mode


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
