"""From a folder of answers to figures: a small stream whose figures are worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.answers import (
    DIGESTS,
    FACTS,
    LOCATED,
    TARGETS,
    TASKS,
    asked,
    until,
    write_answers,
    write_stage,
)

from cmoe.common.run_files import write_json
from cmoe.data.samples import Sample, Task
from cmoe.data.settings import DataConfig
from cmoe.evaluation import predictions
from cmoe.evaluation.predictions import (
    Evaluated,
    Stage,
    read_stage,
    stage_file,
)
from cmoe.evaluation.predictions import read_predictions as read_all
from cmoe.evaluation.results import results, table
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.evaluation.targets import stream_targets
from cmoe.modeling.routers import BASE
from cmoe.tasks import registry
from cmoe.tasks.answer_files import target_of
from cmoe.tasks.caption_scorers import cider
from cmoe.tasks.scorers import Target


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
    assert target_of(Sample("1", question, "B")).choices == 3
    assert target_of(Sample("1", "What is it? A. nothing", "x")).choices is None
    boxed = target_of(Sample("1", "Where?", "[0, 0, 1, 1]", size=(640, 480)))
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


def test_a_figure_of_all_samples_together_has_no_scores(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task judged by CIDEr stands in the matrix as papers print it, and nowhere by samples."""
    monkeypatch.setitem(registry._SCORERS, "VQAv2", "cider")
    found = results(folder, TASKS, TARGETS, FACTS, "official")
    assert found["scorers"] == {"GQA": "lower_case", "ImageNet": "class_name", "VQAv2": "cider"}
    assert found["last_scores"].keys() == {"GQA", "ImageNet"}
    targets = list(TARGETS["VQAv2"].values())
    figure = 100 * cider(["2", "Yes", "no", "Cat."], targets)
    assert figure > 100, "which isn't a percentage"
    assert found["located"][2] == [50, 50, pytest.approx(figure)]
    assert found["strict"]["located"][2][2] == found["located"][2][2]
    assert found["metrics"]["last"] == pytest.approx((50 + 50 + figure) / 3)
