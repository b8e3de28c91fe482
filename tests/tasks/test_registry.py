"""A task's name becomes a scorer in one place."""

from __future__ import annotations

import pytest

from cmoe.config.tree import RunConfig
from cmoe.data.settings import TASKS, DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.tasks import registry
from cmoe.tasks.judge import judge
from cmoe.tasks.registry import register_task, require_known, score, scorer_of, tasks
from cmoe.tasks.scorers import SCORERS, Target


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone when it ends."""
    monkeypatch.setattr(registry, "_SCORERS", dict(registry._SCORERS))


def test_coins_tasks_are_there_in_its_order_and_every_scorer_has_one() -> None:
    assert tasks() == TASKS
    assert [id(scorer_of(task)) for task in ("VizWiz", "VQAv2")] == [id(scorer_of("VQAv2"))] * 2
    assert {id(scorer_of(task)) for task in tasks()} == {id(each) for each in SCORERS.values()}


def test_a_task_of_ones_own_is_judged_by_the_scorer_that_it_names() -> None:
    register_task("Mine", scorer="upper_case")
    register_task("Counted", scorer="choice")
    assert tasks() == (*TASKS, "Mine", "Counted")
    targets = [Target("a"), Target("b")]
    assert score("Mine", "official", ["A", "a"], targets) == [1.0, 0.0]
    assert score("Mine", "strict", [" A.", None], targets) == [1.0, 0.0]
    answers = {"1": Target("A"), "2": Target("B")}
    assert judge("Mine", "official", {"1": "A"}, answers).samples == 1
    assert judge("Counted", "official", {"1": "A"}, answers).samples == 2
    assert RunConfig("x", data=DataConfig(tasks=("GQA", "Mine"))).data.tasks == ("GQA", "Mine")
    EvaluationConfig(answer_files={"Mine": "answers.json"})
    require_known(tasks(), "--tasks")


def test_a_task_has_one_scorer_that_is_there() -> None:
    register_task("Mine", scorer="vqa")
    register_task("Mine", scorer="vqa")
    with pytest.raises(ValueError, match="task 'Mine' is there already, with scorer 'vqa'"):
        register_task("Mine", scorer="box")
    with pytest.raises(ValueError, match=r"task 'Other': no scorer 'vqaa'; .* the nearest is vqa"):
        register_task("Other", scorer="vqaa")
    assert tasks() == (*TASKS, "Mine")


def test_what_nothing_could_score_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^no scorer for task 'gqa'; .*; the nearest is GQA$"):
        scorer_of("gqa")
    with pytest.raises(ValueError, match=r"^--tasks names 'gqa', which has no scorer; .* is GQA$"):
        require_known(["VQAv2", "gqa"], "--tasks")
