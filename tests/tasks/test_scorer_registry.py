"""Scorers by name: what can be registered, what a package may bring, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.jobs import JOB, finish, start
from support.packages import write_package

from cmoe import Target, register_scorer, register_task
from cmoe.common import packages
from cmoe.common.errors import DataError
from cmoe.common.packages import RegistryError
from cmoe.config.tree import RunConfig
from cmoe.data.samples import Sample, Task
from cmoe.data.settings import DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.evaluation.targets import stream_targets
from cmoe.tasks import registry, scorer_registry
from cmoe.tasks.registry import score, scored
from cmoe.tasks.scorer_registry import scorer_named, scorers

COINS = ["scienceqa", "textvqa", "class_name", "lower_case", "upper_case", "ocr", "box"]
BENCHMARKS = ["edit_similarity", "dcl_words", "dcl_contains", "dcl_science", "dcl_choice"]
SAMPLES = ["exact", "contains", "choice", "vqa", "anls", "relaxed", "iou"]
PUBLISHED = [*SAMPLES, *BENCHMARKS, "cider", "bleu4"]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone when it ends."""
    before = dict(scorer_registry._ENTRIES)
    monkeypatch.setattr(registry, "_SCORERS", dict(registry._SCORERS))
    yield
    scorer_registry._ENTRIES.clear()
    scorer_registry._ENTRIES.update(before)


def test_coins_and_the_published_scorers_are_there() -> None:
    assert list(scorers()) == [*COINS, *PUBLISHED]


@pytest.mark.parametrize(
    ("name", "nearest"), [("vqaa", "vqa"), ("text_vqa", "textvqa"), ("CIDEr", "cider"), ("x", "")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"^no scorer '{name}'; there are scienceqa, ") as said:
        scorer_named(name)
    assert str(said.value).endswith(f"; the nearest is {nearest}" if nearest else ", bleu4")
    with pytest.raises(ValueError, match=rf"^task 'Mine': no scorer '{name}'; there are "):
        register_task("Mine", scorer=name)


# A function of one's own


def test_a_function_of_ones_own_is_a_scorer_of_samples() -> None:
    @register_scorer("first_word")
    def first_word(prediction: str, target: Target) -> float:
        return prediction.split()[:1] == target.references[0].split()[:1]

    register_task("Mine", scorer="first_word")
    targets = [Target("red dog"), Target("a", answers=("blue cat", "cat")), Target("one")]
    for mode in ("official", "strict"):
        said = ["red", "blue", None]
        assert score("Mine", mode, said, targets) == [1, 1, 0]  # type: ignore[arg-type]
        assert scored(Task("Mine", (), ()), mode, said, targets).figure == pytest.approx(200 / 3)  # type: ignore[arg-type]
    assert first_word("red", Target("red")) == 1, "it stays a function"


def test_a_function_of_ones_own_may_judge_all_together() -> None:
    @register_scorer("distinct", corpus=True)
    def distinct(predictions: Sequence[str], targets: Sequence[Target]) -> float:
        return len(set(predictions)) / len(targets)

    register_task("Mine", scorer="distinct")
    found = scored(Task("Mine", (), ()), "official", ["a", "a", None, None], [Target("b")] * 4)
    assert found == (50, None), "a missing prediction counts as an empty one"
    with pytest.raises(ValueError, match="distinct judges all of Mine together, and no sample"):
        score("Mine", "official", ["a"], [Target("b")])
    with pytest.raises(ValueError, match="1 predictions for 2 targets in Mine"):
        scored(Task("Mine", (), ()), "strict", ["a"], [Target("b")] * 2)
    with pytest.raises(ValueError, match="no mode 'Strict'"):
        scored(Task("Mine", (), ()), "Strict", ["a"], [Target("b")])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vqa", "upper_case", "mine"])
def test_a_name_is_registered_once(name: str) -> None:
    register_scorer("mine")(lambda prediction, target: 0.0)
    with pytest.raises(RegistryError, match=f"scorer '{name}' is there already, from cmoe"):
        register_scorer(name)(lambda prediction, target: 1.0)


@pytest.mark.parametrize(
    ("function", "corpus", "what"),
    [
        (lambda prediction: 0.0, False, "a prediction and its target: .*"),
        (lambda prediction, target, more: 0.0, True, "all predictions and all targets: .*'more'"),
        ("score", False, "a prediction and its target"),
    ],
)
def test_what_cannot_be_called_is_refused(
    function: Callable[..., float], corpus: bool, what: str
) -> None:
    with pytest.raises(RegistryError, match=f"'mine': must be a function that takes {what}"):
        register_scorer("mine", corpus=corpus)(function)
    assert "mine" not in scorers()


@pytest.mark.parametrize("wrong", [1.5, -0.1, float("nan")])
def test_a_score_out_of_bounds_is_refused(wrong: float) -> None:
    register_scorer("mine")(lambda prediction, target: wrong)
    register_task("Mine", scorer="mine")
    with pytest.raises(ValueError, match=rf"Mine: the scorer gives {wrong} to 'a'; .* 0 to 1"):
        score("Mine", "official", ["a"], [Target("a")])
    register_scorer("all", corpus=True)(lambda predictions, targets: wrong - 2)
    register_task("All", scorer="all")
    with pytest.raises(ValueError, match=r"All: the scorer's figure is .*; a number, 0 or more"):
        scored(Task("All", (), ()), "official", ["a"], [Target("a")])


# Before a run begins


def broken(prediction: str, target: Target) -> float:
    return 1 / len(target.answer.removeprefix("no"))


@pytest.mark.parametrize(
    ("scorer", "why"),
    [
        ("choice", "an answer must be one letter, A to Z, this is 'no'"),
        ("iou", r"an answer must be a box of four numbers.*'no'"),
        ("broken", "ZeroDivisionError: division by zero"),
    ],
)
def test_targets_that_a_scorer_cannot_use_are_refused_when_they_are_read(
    scorer: str, why: str
) -> None:
    register_scorer("broken")(broken)
    register_task("Mine", scorer=scorer)
    right = "[0, 0, 1, 1]" if scorer == "iou" else "A"
    task = Task("Mine", (), (Sample("1", "?", right), Sample("2", "?", "no")))
    data = DataConfig(tasks=("Mine",))
    with pytest.raises(DataError, match=f"Mine, sample '2': its scorer can't judge it: {why}"):
        stream_targets([task], data, EvaluationConfig())
    fine = Task("Mine", (), task.test[:1])
    assert list(stream_targets([fine], data, EvaluationConfig())["Mine"]) == ["1"]


def test_a_scorer_that_lacks_a_package_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register_task("Mine", scorer="bleu4")
    RunConfig("x", data=DataConfig(tasks=("Mine",)))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    why = r"sacrebleu isn't installed; `pip install 'cmoe\[captions\]'` installs it"
    with pytest.raises(ValueError, match=f"^data.tasks names 'Mine', whose .* is bleu4: {why}$"):
        RunConfig("x", data=DataConfig(tasks=("Mine",)))


# Packages

GROUP = "cmoe.scorers"
LENGTH = "def score(prediction, target):\n    return len(prediction) == len(target.answer)\n"


def scored_file(tmp_path: Path, package: dict[str, str], scorer: str) -> tuple[int, str]:
    said, answers = tmp_path / "said.jsonl", tmp_path / "answers.jsonl"
    said.write_text('{"question_id": 1, "text": "abc"}\n{"question_id": 2, "text": "a"}\n')
    answers.write_text('{"question_id": 1, "answer": "xyz"}\n{"question_id": 2, "answer": "xyz"}\n')
    files = ["--predictions", str(said), "--answers", str(answers)]
    job = start("-m", "cmoe", "score", "--scorer", scorer, *files, environment=package)
    text = finish(job)
    return job.returncode, text


def test_a_packages_function_is_a_scorer_by_the_entry_points_name(tmp_path: Path) -> None:
    package = write_package(tmp_path, "cmoe-len", LENGTH, GROUP, "length = cmoe_len:score")
    said = "length: accuracy 50.00%, 2 samples, 0 predictions missing, 0 of unknown ids\n"
    assert scored_file(tmp_path, package, "length") == (0, said)
    status, text = scored_file(tmp_path, package, "lenght")
    assert status == 2
    assert "no scorer 'lenght'; there are scienceqa, " in text
    assert text.endswith("bleu4, length; the nearest is length\n")


def test_a_packages_module_may_register_its_function_itself(tmp_path: Path) -> None:
    """So that it can say that it judges all together."""
    source = (
        "import cmoe\n@cmoe.register_scorer('mine', corpus=True)\n"
        "def score(predictions, targets):\n    return len(set(predictions))\n"
    )
    package = write_package(tmp_path, "cmoe-mine", source, GROUP, "mine = cmoe_mine:score")
    said = "mine: 200.00, of 2 samples together, 0 predictions missing, 0 of unknown ids\n"
    assert scored_file(tmp_path, package, "mine") == (0, said)


@pytest.mark.parametrize(
    ("source", "point", "why"),
    [
        ("import nowhere", "mine", "cmoe_bad:score ends in ModuleNotFoundError: No module named "),
        ("x = 1", "mine", "cmoe_bad:score ends in AttributeError: "),
        (LENGTH, "vqa", "scorer 'vqa' is there already, from cmoe"),
        ("score = 1", "mine", "scorer 'mine': must be a function that takes a prediction and its"),
        ("def score(text): ...", "mine", "scorer 'mine': must be a function that takes a predict"),
    ],
)
def test_a_package_that_cannot_be_used_is_named_and_no_run_starts(
    tmp_path: Path, source: str, point: str, why: str
) -> None:
    package = write_package(tmp_path, "cmoe-bad", source, GROUP, f"{point} = cmoe_bad:score")
    job = start(JOB, "--name", "x", "--plan", environment=package)
    said = finish(job)
    assert job.returncode == 2
    assert said.startswith(f"coin_stream.py: package cmoe-bad can't be used: {why}")
    assert said.endswith("; mend or uninstall it\n")
    assert len(said.splitlines()) == 1
    status, text = scored_file(tmp_path, package, "exact")
    assert (status, text.split(",")[0]) == (0, "exact: accuracy 0.00%"), "cmoe's own are as before"


def test_a_package_may_bring_a_task_with_its_scorer(tmp_path: Path) -> None:
    """The module that registers the task is still being imported when its scorer is asked for."""
    source = f"import cmoe\n{LENGTH}\ncmoe.register_task('Mine', scorer='length')\n"
    points = "length = cmoe_both:score\n[cmoe.methods]\nboth = cmoe_both"
    package = write_package(tmp_path, "cmoe-both", source, GROUP, points)
    code = "import cmoe; cmoe.RunConfig('x'); from cmoe.tasks.registry import *; print(tasks()[-1])"
    job = start("-c", code, environment=package)
    assert finish(job) == "Mine\n"


def test_scorers_are_loaded_without_anything_heavy() -> None:
    code = "import sys, cmoe; cmoe.register_scorer, cmoe.Target; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded: Any = {name.partition(".")[0] for name in done.stdout.split()}
    assert not {"torch", "transformers", "numpy", "sacrebleu", "PIL"} & loaded
