"""How prediction files meet their answers: CoIN's join of each task, and the strict one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cmoe.tasks.judge import judge
from cmoe.tasks.registry import tasks
from cmoe.tasks.scorers import Mode, Target

BOX = "[0.00, 0.00, 0.50, 0.500]"
# An answer that is right by every rule of its task, and one that is wrong.
RIGHT = dict.fromkeys(tasks(), "yes") | {"ScienceQA": "B", "Grounding": BOX}
WRONG = dict.fromkeys(tasks(), "no") | {"ScienceQA": "A", "Grounding": "[0.90, 0.90, 1.00, 1.000]"}

by_task = pytest.mark.parametrize("task", tasks())
by_mode = pytest.mark.parametrize("mode", ["official", "strict"])


def asked(task: str, *ids: str) -> dict[str, Target]:
    """Questions with the same answer."""
    return {key: Target(RIGHT[task]) for key in ids}


# What both have in common


@by_task
@by_mode
def test_accuracy_is_the_percentage_of_right_predictions(task: str, mode: Mode) -> None:
    said = {"1": RIGHT[task], "2": WRONG[task], "3": RIGHT[task]}
    found = judge(task, mode, said, asked(task, "1", "2", "3"))
    assert found.accuracy == pytest.approx(200 / 3)
    assert (found.samples, found.missing, found.unknown) == (3, 0, 0)


@by_task
@by_mode
def test_missing_and_unknown_ids_are_counted(task: str, mode: Mode) -> None:
    found = judge(task, mode, {"1": RIGHT[task], "x": "?"}, asked(task, "1", "2", "3"))
    assert (found.missing, found.unknown) == (2, 1)


@pytest.mark.parametrize("task", [task for task in tasks() if task != "ImageNet"])
@by_mode
def test_predictions_of_unknown_ids_change_nothing(task: str, mode: Mode) -> None:
    said = {"1": RIGHT[task], "2": WRONG[task]}
    targets = asked(task, "1", "2")
    plain, more = (judge(task, mode, s, targets) for s in (said, {"x": RIGHT[task]} | said))
    assert (more.accuracy, more.samples) == (plain.accuracy, plain.samples) == (50, 2)


@pytest.mark.parametrize("task", [task for task in tasks() if task != "ImageNet"])
@by_mode
def test_predictions_are_matched_by_id_in_any_order(task: str, mode: Mode) -> None:
    other = {"ScienceQA": "C", "Grounding": "[0.50, 0.50, 1.00, 1.000]"}.get(task, "x")
    targets = {"1": Target(RIGHT[task]), "2": Target(other)}
    assert judge(task, mode, {"2": other, "1": RIGHT[task]}, targets).accuracy == 100


# A missing prediction


@pytest.mark.parametrize(
    ("task", "accuracy", "samples"),
    [
        ("ScienceQA", 100 / 3, 3),  # every test id counts
        ("TextVQA", 50, 2),
        ("ImageNet", 50, 2),
        ("GQA", 50, 2),
        ("VizWiz", 50, 2),
        ("Grounding", 50, 2),
        ("VQAv2", 50, 2),
        ("OCRVQA", 50, 2),
    ],
)
def test_officially_science_qa_alone_counts_a_missing_prediction(
    task: str, accuracy: float, samples: int
) -> None:
    found = judge(task, "official", {"1": RIGHT[task], "2": WRONG[task]}, asked(task, *"123"))
    assert found.accuracy == pytest.approx(accuracy)
    assert (found.samples, found.missing) == (samples, 1)


@by_task
def test_strictly_a_missing_prediction_is_wrong_in_every_task(task: str) -> None:
    found = judge(task, "strict", {"1": RIGHT[task], "2": WRONG[task]}, asked(task, *"123"))
    assert found.accuracy == pytest.approx(100 / 3)
    assert (found.samples, found.missing) == (3, 1)


def test_nothing_to_score_is_refused() -> None:
    for said in ({}, {"x": "yes"}):
        with pytest.raises(ValueError, match=f"none of {len(said)} predictions is of a question"):
            judge("GQA", "official", said, asked("GQA", "1"))
    with pytest.raises(ValueError, match="none of 0 predictions"):
        judge("ImageNet", "official", {}, asked("ImageNet", "1"))
    # All are missing, and count.
    assert judge("ScienceQA", "official", {}, asked("ScienceQA", "1")).accuracy == 0
    assert judge("GQA", "strict", {"x": "yes"}, asked("GQA", "1")).accuracy == 0


# ImageNet

BIRDS = {"1": Target("hen"), "2": Target("duck"), "3": Target("owl")}


def test_image_net_is_officially_matched_by_order_and_strictly_by_id() -> None:
    ordered = {"1": "hen", "2": "duck", "3": "owl"}
    turned = dict(reversed(ordered.items()))
    renamed = {f"other-{key}": text for key, text in ordered.items()}
    for said, official, strict in ((ordered, 100, 100), (turned, 100 / 3, 100), (renamed, 100, 0)):
        assert judge("ImageNet", "official", said, BIRDS).accuracy == pytest.approx(official)
        assert judge("ImageNet", "strict", said, BIRDS).accuracy == pytest.approx(strict)


def test_a_missing_image_net_prediction_officially_shifts_those_behind_it() -> None:
    said = {"1": "hen", "3": "owl"}
    official, strict = (judge("ImageNet", mode, said, BIRDS) for mode in ("official", "strict"))
    assert (official.accuracy, official.samples) == (50, 2), "owl is held against duck"
    assert strict.accuracy == pytest.approx(200 / 3)
    assert strict.samples == 3
    assert official.missing == strict.missing == 1


def test_more_image_net_predictions_than_answers_are_officially_refused() -> None:
    said = dict.fromkeys("1234", "hen")
    with pytest.raises(ValueError, match="4 predictions for 3 answers"):
        judge("ImageNet", "official", said, BIRDS)
    assert judge("ImageNet", "strict", said, BIRDS).unknown == 1


# The program


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "cmoe", "score", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def files(
    folder: Path, said: Mapping[Any, str], answers: Any, **more: Any
) -> tuple[str, str, str, str]:
    """Predictions and answers, as arguments."""
    lines = [json.dumps({"question_id": key, "text": text}) for key, text in said.items()]
    (folder / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, value in {"answers": answers, **more}.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return "--predictions", str(folder / "p.jsonl"), "--answers", str(folder / "answers.json")


def row(key: Any, answer: str) -> dict[str, Any]:
    return {"question_id": key, "text": "?", "answer": answer}


CASES: dict[str, tuple[str, Mapping[Any, str], Mapping[str, Any], Sequence[str]]] = {
    # Numbers meet text; the empty prediction is right officially.
    "ids of two kinds": (
        "ImageNet",
        {1: "a hen", "2": ""},
        {"answers": [row("1", "hen"), row(2, "duck"), row(3, "owl")]},
        [
            "official: accuracy 100.00%, 2 samples, 1 predictions missing, 0 of unknown ids",
            "strict: accuracy 33.33%, 3 samples, 1 predictions missing, 0 of unknown ids",
        ],
    ),
    # Three of ten people; the leading article goes.
    "TextVQA's people": (
        "TextVQA",
        {5: "The stop", 6: "stop"},
        {"answers": {"data": [{"question_id": 5, "answers": ["stop"] * 3 + ["go"] * 7}]}},
        [
            "official: accuracy 90.00%, 1 samples, 0 predictions missing, 1 of unknown ids",
            "strict: accuracy 90.00%, 1 samples, 0 predictions missing, 1 of unknown ids",
        ],
    ),
    # C is none of two choices, and 4 was not answered.
    "ScienceQA's problems": (
        "ScienceQA",
        {"1": "B. blue", "2": "C", "9": "A"},
        {
            "answers": {
                "1": {"choices": ["red", "blue"], "answer": 1},
                "2": {"choices": ["yes", "no"], "answer": 0},
                "4": {"choices": ["a", "b", "c"], "answer": 2},
                "9": {"choices": ["a", "b"], "answer": 0},
            },
            "pid_splits": {"test": ["1", "2", "4"], "train": ["9"]},
        },
        [
            "official: accuracy 33.33%, 3 samples, 1 predictions missing, 1 of unknown ids",
            "strict: accuracy 33.33%, 3 samples, 1 predictions missing, 1 of unknown ids",
        ],
    ),
    # White space counts officially.
    "GQA's questions": (
        "GQA",
        {"01": "Yes.", "02": " no"},
        {"answers": {"01": {"answer": "yes"}, "02": {"answer": "no"}, "03": {"answer": "red"}}},
        [
            "official: accuracy 50.00%, 2 samples, 1 predictions missing, 0 of unknown ids",
            "strict: accuracy 66.67%, 3 samples, 1 predictions missing, 0 of unknown ids",
        ],
    ),
    # The box against itself.
    "Grounding's boxes": (
        "Grounding",
        {"r1": "[0.12, 0.30, 0.45, 0.39]"},
        {"answers": [{**row("r1", "unread"), "answer_bbox": "[0.12, 0.30, 0.45, 0.39]"}]},
        [
            "official: accuracy 0.00%, 1 samples, 0 predictions missing, 0 of unknown ids",
            "strict: accuracy 100.00%, 1 samples, 0 predictions missing, 0 of unknown ids",
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_program_scores_a_file_by_both_rules(tmp_path: Path, name: str) -> None:
    task, said, written, lines = CASES[name]
    done = program("--task", task, *files(tmp_path, said, **written))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{task}, {line}" for line in lines]


def test_the_program_scores_by_one_rule_if_asked(tmp_path: Path) -> None:
    given = files(tmp_path, {1: "Dark blue."}, [row(1, "dark blue")])
    for mode, accuracy in (("official", "0.00%"), ("strict", "100.00%")):
        done = program("--task", "VizWiz", *given, "--mode", mode)
        (line,) = done.stdout.splitlines()
        assert line.startswith(f"VizWiz, {mode}: accuracy {accuracy}")


def test_the_programs_errors_go_to_stderr_with_status_2(tmp_path: Path) -> None:
    good = files(tmp_path, {1: "yes"}, [row(1, "yes")])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question_id": 1}\n', encoding="utf-8")
    for arguments, said in (
        (("--task", "VQA", *good), "GQA"),
        (("--task", "GQA", *good, "--mode", "loose"), "official"),
        (("--task", "GQA"), "--predictions"),
        (("--task", "GQA", "--predictions", str(broken), *good[2:]), "broken.jsonl, line 1: text"),
        (
            ("--task", "GQA", *good[:2], "--answers", str(broken)),
            "id 'question_id': an object",
        ),
        (("--task", "GQA", *good[:2], "--answers", str(tmp_path)), f"{tmp_path}: can't be read"),
    ):
        done = program(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_the_program_needs_nothing_heavy() -> None:
    code = "import sys, cmoe.tasks.judge; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not {"torch", "transformers", "pyarrow", "numpy", "PIL", "fsspec"} & loaded


# By a scorer

OWN = [
    {"question_id": 1, "answers": ["Total amount", "amount"], "more": "passed over"},
    {"question_id": "2", "answer": "12/15/88"},
    {"question_id": 3, "answer": "unanswered"},
]


def own_files(folder: Path, said: Mapping[Any, str], rows: Any, *, lines: bool) -> tuple[str, ...]:
    found = files(folder, said, rows)
    if lines:
        Path(found[3]).write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    return found


@pytest.mark.parametrize("lines", [False, True])
def test_the_program_scores_by_a_scorer_and_a_file_of_answers(tmp_path: Path, lines: bool) -> None:
    """A missing prediction is wrong: (1 + 7/8 + 0) / 3."""
    given = own_files(tmp_path, {"1": "total  amount", 2: "12/15/89", 9: "?"}, OWN, lines=lines)
    done = program("--scorer", "anls", *given)
    assert (done.returncode, done.stderr) == (0, "")
    told = "3 samples, 1 predictions missing, 1 of unknown ids\n"
    assert done.stdout == f"anls: accuracy 62.50%, {told}", "once: it has one rule"
    done = program("--scorer", "cider", *given)
    assert done.stdout.endswith("of 3 samples together, 1 predictions missing, 1 of unknown ids\n")
    done = program("--scorer", "upper_case", *given)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "upper_case, official",
        "upper_case, strict",
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question_id": 1}, "row 0: answer or answers is needed, one of them; has question_id"),
        ({"question_id": 1, "answer": "a", "answers": ["a"]}, "answer or answers is needed, one"),
        ({"question_id": 1, "answers": []}, "row 0: answers must be texts, at least one, this is"),
        ({"question_id": 1, "answers": ["a", 2]}, "answers must be texts, at least one"),
        ({"question_id": 1, "answer": 2}, "row 0: answer must be text, this is 2"),
        ({"question_id": 1, "answer": "a", "size": [4]}, "row 0: size must be width and height"),
        ({"answer": "a"}, "row 0: question_id must be"),
        (3, "row 0: an object is needed, this is int: 3"),
    ],
)
def test_a_row_of_answers_that_cannot_be_used_is_named(tmp_path: Path, row: Any, said: str) -> None:
    given = files(tmp_path, {1: "a"}, [row])
    done = program("--scorer", "exact", *given)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"answers.json, {said}" in done.stderr or said in done.stderr


def test_either_a_task_or_a_scorer_is_asked_for(tmp_path: Path) -> None:
    given = files(tmp_path, {1: "a"}, OWN)
    for words in ((), ("--task", "GQA", "--scorer", "anls")):
        done = program(*words, *given)
        assert done.returncode == 2
        assert "--scorer" in done.stderr
    done = program("--scorer", "anlss", *given)
    assert done.returncode == 2
    assert "no scorer 'anlss'; there are scienceqa, " in done.stderr
    assert done.stderr.endswith("the nearest is anls\n")
