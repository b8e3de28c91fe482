"""Answer and prediction files as CoIN and its data sets write them, whole and with defects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cmoe.common.errors import DataError
from cmoe.config.tree import RunConfig
from cmoe.data.coin import read_tasks
from cmoe.data.settings import TASKS, DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.evaluation.targets import stream_targets
from cmoe.mini.tasks import write_mini_coin
from cmoe.run.launch import run
from cmoe.run.worker_group import rooted
from cmoe.tasks.answer_files import Prediction, read_predictions, read_targets, write_predictions
from cmoe.tasks.registry import tasks
from cmoe.tasks.scorers import Target

PEOPLE = ["stop"] * 3 + ["go"] * 6 + ["halt"]
PROBLEMS = {
    "1": {"question": "?", "choices": ["red", "blue"], "answer": 0, "split": "train"},
    "4": {"question": "?", "choices": ["cat", "dog", "cow"], "answer": 2, "split": "test"},
    "2": {"question": "?", "choices": ["yes", "no"], "answer": 1, "split": "test"},
}
SPLITS = {"train": ["1"], "test": ["2", "4"], "minitest": ["4"]}


def written(folder: Path, files: Mapping[str, Any]) -> Path:
    """Files of JSON, or of bare text; the path of the first."""
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / next(iter(files))


# The data sets' own files


def test_science_qas_targets_are_the_test_splits_problems(tmp_path: Path) -> None:
    file = written(tmp_path, {"problems.json": PROBLEMS, "pid_splits.json": SPLITS})
    found = read_targets("ScienceQA", file)
    assert found == {"2": Target("B", choices=2), "4": Target("C", choices=3)}
    assert list(found) == ["2", "4"], "in the split's order"


def test_text_vqas_targets_are_what_ten_people_said(tmp_path: Path) -> None:
    rows = [{"question_id": 34602, "image_id": "0a", "question": "?", "answers": PEOPLE}]
    file = written(tmp_path, {"TextVQA_0.5.1_val.json": {"dataset_type": "val", "data": rows}})
    (target,) = read_targets("TextVQA", file).values()
    assert target.answers == tuple(PEOPLE)
    assert list(read_targets("TextVQA", file)) == ["34602"]


def test_gqas_targets_are_its_questions_answers(tmp_path: Path) -> None:
    questions = {"201307251": {"answer": "no", "isBalanced": True, "types": {"a": "b"}}}
    file = written(tmp_path, {"testdev_balanced_questions.json": questions})
    assert read_targets("GQA", file) == {"201307251": Target("no")}


# CoIN's own files


@pytest.mark.parametrize("task", tasks())
def test_every_task_reads_coins_own_rows(tmp_path: Path, task: str) -> None:
    answer = "[0.1, 0.2, 0.3, 0.4]"
    rows = [{"question_id": key, "text": "?", "answer": answer} for key in (7, "a7")]
    assert read_targets(task, written(tmp_path, {"test.json": rows})) == {
        "7": Target(answer, question="?"),
        "a7": Target(answer, question="?"),
    }


def test_a_row_tells_the_choices_the_box_and_the_pictures_size(tmp_path: Path) -> None:
    question = "Which?\nA. red\nB. blue\nAnswer with the letter."
    row = {"question_id": 1, "text": question, "answer": "A"}
    assert read_targets("ScienceQA", written(tmp_path, {"t": [row]}))["1"].choices == 2
    box = {"answer_bbox": "[0.1,0.2,0.3,0.4]", "size": [640, 480]}
    found = read_targets("Grounding", written(tmp_path, {"t": [row | box]}))["1"]
    assert (found.answer, found.size) == ("[0.1,0.2,0.3,0.4]", (640, 480))


def test_a_written_test_file_has_the_streams_targets(tmp_path: Path) -> None:
    write_mini_coin(tmp_path, train=1, test=5)
    data = DataConfig(root=str(tmp_path))
    own = stream_targets(read_tasks(data, 0), data, EvaluationConfig())
    assert list(own) == list(TASKS)
    for task in TASKS:
        (file,) = (tmp_path / "Instructions_Original" / task).glob("[tv]*[tl].json")
        assert read_targets(task, file) == own[task]
        assert list(read_targets(task, file)) == list(own[task])


# What can't be used: by task the files, and what the error says

ROW = {"question_id": 1, "text": "?", "answer": "yes"}
BOX = ROW | {"answer": "[0, 0, 1, 1]"}
DEFECTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no JSON": ("GQA", {"t": '[{"a": 1}'}, "t: not JSON"),
    "predictions": ("GQA", {"t": '{"text": "a"}\n{"text": "b"}'}, "t: not JSON"),
    "no rows": ("GQA", {"t": []}, "t: has no answers; at least one"),
    "no questions": ("GQA", {"t": {}}, "t: has no answers; at least one"),
    "a number": ("GQA", {"t": 3}, "list of rows with .*, or GQA's testdev_balanced_questions.json"),
    "another's file": ("VizWiz", {"t": {"a": ROW}}, "no answers to VizWiz; .* a list of rows with"),
    "a row that is none": (
        "OCRVQA",
        {"t": [ROW, 3]},
        "t, row 1: an object is needed, this is int: 3",
    ),
    "no id": ("OCRVQA", {"t": [{"id": 1, "answer": "a"}]}, "row 0: question_id .*; has id, answer"),
    "a broken id": (
        "OCRVQA",
        {"t": [ROW | {"question_id": 1.5}]},
        "row 0: .* number or text.* 1.5",
    ),
    "no id but truth": ("OCRVQA", {"t": [ROW | {"question_id": True}]}, "row 0: question_id must"),
    "an id twice": ("OCRVQA", {"t": [ROW, ROW | {"question_id": "1"}]}, "row 1: id '1' .* twice"),
    "no answer": ("VQAv2", {"t": [{"question_id": 1, "text": "?"}]}, "row 0: answer must be text"),
    "an answer of numbers": (
        "VQAv2",
        {"t": [ROW | {"answer": 2}]},
        "answer must be text, this is 2",
    ),
    "no question": (
        "VQAv2",
        {"t": [{"question_id": 1, "answer": "?"}]},
        "row 0: text must be text",
    ),
    "no box": ("Grounding", {"t": [ROW]}, "row 0: answer must be a box of four numbers.*'yes'"),
    "half a box": (
        "Grounding",
        {"t": [BOX | {"answer_bbox": "[1, 2]"}]},
        "row 0: answer_bbox .*box",
    ),
    "half a size": ("Grounding", {"t": [BOX | {"size": [4]}]}, "row 0: size must be width and hei"),
    "no size": (
        "Grounding",
        {"t": [BOX | {"size": [0, 4]}]},
        "row 0: size must be width and height",
    ),
    "no splits": ("ScienceQA", {"t": PROBLEMS}, "pid_splits.json: can't be read: No such file"),
    "no test split": (
        "ScienceQA",
        {"t": PROBLEMS, "pid_splits.json": {"train": []}},
        'pid_splits.json: needs "test"',
    ),
    "splits alone": (
        "ScienceQA",
        {"pid_splits.json": SPLITS},
        "test, row 0: id '2' is not in .*pid_splits.json; every test id must be",
    ),
    "a test id without a problem": (
        "ScienceQA",
        {"t": PROBLEMS, "pid_splits.json": {"test": ["2", "9"]}},
        "pid_splits.json, test, row 1: id '9' is not in .*t; every",
    ),
    "a test id twice": (
        "ScienceQA",
        {"t": PROBLEMS, "pid_splits.json": {"test": ["2", "2"]}},
        "pid_splits.json, test, row 1: id '2' stands twice",
    ),
    "a problem twice": (
        "ScienceQA",
        {"t": '{"2": {"choices": [1], "answer": 0}, "2": {}}', "pid_splits.json": SPLITS},
        "t: .*'2' stands twice",
    ),
    "an answer beyond the choices": (
        "ScienceQA",
        {"t": {"2": {"choices": ["a", "b"], "answer": 2}}, "pid_splits.json": {"test": ["2"]}},
        "t, id '2': needs choices, a list, and answer, the number of one",
    ),
    "no choices": (
        "ScienceQA",
        {"t": {"2": {"answer": 0}}, "pid_splits.json": {"test": ["2"]}},
        "t, id '2': needs choices",
    ),
    "no data": ("TextVQA", {"t": {"questions": []}}, 't: needs "data", a list of questions'),
    "nine answers": (
        "TextVQA",
        {"t": {"data": [{"question_id": 5, "answers": PEOPLE[1:]}]}},
        "data, row 0, id '5': answers must be 10 texts",
    ),
    "nobody's answers": (
        "TextVQA",
        {"t": {"data": [{"question_id": 5, "question": "?"}]}},
        "data, row 0, id '5': answers must be 10 texts, this is None",
    ),
    "a question twice": (
        "TextVQA",
        {"t": {"data": [{"question_id": i, "answers": PEOPLE} for i in (5, "5")]}},
        "data, row 1: id '5' stands twice",
    ),
    "no question's id": ("TextVQA", {"t": {"data": [{"answers": PEOPLE}]}}, "row 0: question_id"),
    "a question without an answer": (
        "GQA",
        {"t": {"q1": {"question": "?"}}},
        "id 'q1': answer must",
    ),
    "a bare answer": (
        "GQA",
        {"t": {"q1": "yes"}},
        "id 'q1': an object is needed, this is str: 'yes'",
    ),
    "a question's key twice": (
        "GQA",
        {"t": '{"q1": {"answer": "yes"}, "q1": {"answer": "no"}}'},
        "t: .*'q1' stands twice",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_an_answer_file_that_cannot_be_used_says_where_and_why(tmp_path: Path, name: str) -> None:
    task, files, message = DEFECTS[name]
    with pytest.raises(ValueError, match=message) as caught:
        read_targets(task, written(tmp_path, files))
    assert str(tmp_path) in str(caught.value), "the file is named"


def test_an_answer_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json: can't be read: No such file"):
        read_targets("GQA", tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match=f"{tmp_path.name}: can't be read: Is a directory"):
        read_targets("GQA", tmp_path)


# The stream's targets


def test_a_tasks_answer_file_takes_the_place_of_its_own_answers(tmp_path: Path) -> None:
    write_mini_coin(tmp_path, train=4, test=2)
    data = DataConfig(root=str(tmp_path), tasks=("TextVQA", "GQA"), selection=0.5)
    tasks = read_tasks(data, 0)
    ids = [sample.id for sample in tasks[0].test]
    rows = [{"question_id": i, "answers": PEOPLE} for i in (*reversed(ids), "another")]
    file = written(tmp_path, {"v.json": {"data": rows}})
    evaluation = EvaluationConfig(answer_files={"TextVQA": str(file), "OCRVQA": "unread.json"})
    own, found = (
        stream_targets(tasks, data, config) for config in (EvaluationConfig(), evaluation)
    )
    assert [target.answers for target in found["TextVQA"].values()] == [tuple(PEOPLE)] * 2
    assert list(found["TextVQA"]) == ids, "in the order of the test"
    assert found["GQA"] == own["GQA"]
    # Training samples have no answers there.
    held = DataConfig(root=str(tmp_path), tasks=data.tasks, selection=0.5, evaluate_on="selection")
    selected = read_tasks(held, 0)
    assert stream_targets(selected, held, evaluation) == stream_targets(
        selected, held, EvaluationConfig()
    )


def test_a_sample_without_an_answer_in_the_file_is_named(tmp_path: Path) -> None:
    write_mini_coin(tmp_path, train=1, test=2)
    data = DataConfig(root=str(tmp_path), tasks=("GQA",))
    tasks = read_tasks(data, 0)
    file = written(tmp_path, {"questions.json": {tasks[0].test[0].id: {"answer": "yes"}}})
    message = rf"questions\.json: has no answer to sample '{tasks[0].test[1].id}' of GQA"
    with pytest.raises(ValueError, match=message):
        stream_targets(tasks, data, EvaluationConfig(answer_files={"GQA": str(file)}))


def test_a_missing_answer_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = DataConfig(
        root=str(root), tasks=("GQA",), generate=True, train_samples=8, test_samples=1
    )
    evaluation = EvaluationConfig(answer_files={"GQA": str(tmp_path / "nowhere.json")})
    config = RunConfig("x", runs=str(tmp_path / "runs"), data=data, evaluation=evaluation)
    with pytest.raises(DataError, match=r"nowhere\.json: can't be read"):
        run(config, show=lambda _: None)
    assert not config.folder.exists()


def test_workers_in_another_folder_find_the_answer_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig("x", evaluation=EvaluationConfig(answer_files={"GQA": "a/b.json"}))
    files = rooted(config).evaluation.answer_files
    assert files == {"GQA": str(tmp_path / "a/b.json")}


def test_an_answer_file_for_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"answer_files names 'VQA'; there are ScienceQA, TextVQA"):
        EvaluationConfig(answer_files={"VQA": "a.json"})


# Predictions

SAID = [
    Prediction("7", "Where?\nAnswer.", "on the left \N{SNOWMAN}", {"answered_by": "GQA"}),
    Prediction("a-1", "What?", "", {}),
]


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "GQA.jsonl"
    write_predictions(file, "GQA", "run/cmoe/2", SAID)
    assert read_predictions(file) == {"7": "on the left \N{SNOWMAN}", "a-1": ""}
    assert list(read_predictions(file)) == ["7", "a-1"]
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row, prediction in zip(rows, SAID, strict=True):
        fields = ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
        assert list(row) == fields
        assert (row["prompt"], row["model_id"]) == (prediction.prompt, "run/cmoe/2")
        assert row["metadata"] == prediction.metadata


def test_the_same_predictions_make_the_same_file_and_ids_of_their_own(tmp_path: Path) -> None:
    ids: list[str] = []
    for task, model in (("GQA", "a/cmoe/0"), ("GQA", "a/cmoe/1"), ("VQAv2", "a/cmoe/0")):
        files = [tmp_path / f"{number}.jsonl" for number in range(2)]
        for file in files:
            write_predictions(file, task, model, SAID)
        assert files[0].read_bytes() == files[1].read_bytes()
        ids += [json.loads(line)["answer_id"] for line in files[0].open()]
    assert len(set(ids)) == 6
    assert all(isinstance(id_, str) and id_ for id_ in ids)


def test_predictions_are_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "GQA.jsonl"
    write_predictions(file, "GQA", "a", SAID)
    before = file.read_bytes()
    broken = Prediction("8", "?", "x", {"unwritable": object()})
    with pytest.raises(TypeError):
        write_predictions(file, "GQA", "b", [*SAID, broken])
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_any_methods_predictions_are_read(tmp_path: Path) -> None:
    """Two fields are needed; shards may be put together with blank lines between them.

    What parts lines for Unicode may stand in a text as it is.
    """
    lines = [
        '{"question_id": 12, "text": "y\u2028s"}\r',
        "",
        '{"text": "a", "question_id": "0"}',
        "",
    ]
    file = written(tmp_path, {"merge.jsonl": "\n".join(lines)})
    assert read_predictions(file) == {"12": "y\u2028s", "0": "a"}


GOOD = '{"question_id": 1, "text": "yes"}\n'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (GOOD + "{", "line 2: not JSON"),
        (GOOD + "\n[1]", "line 3: an object is needed, this is"),
        ('{"text": "yes"}', "line 1: question_id must be a whole number or text.*; has text"),
        ('{"question_id": null, "text": "yes"}', "line 1: question_id must be .* this is None"),
        (GOOD + '{"question_id": 2}', "line 2: text must be text, this is None; has question_id"),
        ('{"question_id": 2, "text": 3}', "line 1: text must be text, this is 3"),
        (GOOD + '{"question_id": "1", "text": "no"}', "line 2: id '1' stands twice in this file"),
        ('{"question_id": 2, "text": "a", "text": "b"}', "line 1: .*'text' stands twice"),
    ],
)
def test_a_prediction_that_cannot_be_used_is_named_by_its_line(
    tmp_path: Path, lines: str, message: str
) -> None:
    file = written(tmp_path, {"p.jsonl": lines})
    with pytest.raises(ValueError, match=rf"p\.jsonl, {message}"):
        read_predictions(file)


def test_a_prediction_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"p\.jsonl: can't be read: No such file"):
        read_predictions(tmp_path / "p.jsonl")
