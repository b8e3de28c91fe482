"""The study of a choice on a real Ray: branches of one prefix, each learned once, and judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from playwright.sync_api import Browser
from support.looks import require_good_file
from support.workers import small_config

from cmoe.common.errors import RunError
from cmoe.config.tree import RunConfig
from cmoe.experiments.choice.choice import Started, choice
from cmoe.experiments.choice.settings import ChoiceConfig
from cmoe.reports.choice_page import write_choice_page
from cmoe.store.log import Store

TASKS = ("ScienceQA", "VizWiz", "GQA")
HOW = ChoiceConfig(tasks=("VizWiz",), layers=2, random=3)


def small_study(folder: Path, **data: Any) -> RunConfig:
    run = small_config(folder, "study")
    small = {"train_samples": 48, "test_samples": 8, "tasks": TASKS, "selection": 0.25}
    return replace(
        run,
        data=replace(run.data, **small | data),
        experts=replace(run.experts, attention=0),  # or all layers can't be had at any rank
        training=replace(run.training, steps=2, checkpoint_every=2),
        cluster=replace(run.cluster, max_failures=0),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield tmp_path_factory.mktemp("choice")
    ray.shutdown()


@pytest.fixture(scope="module")
def studied(root: Path) -> dict[str, Any]:
    return choice(small_study(root), HOW, lambda _: None)


def test_every_set_is_learned_behind_the_same_tasks_and_judged(
    root: Path, studied: dict[str, Any]
) -> None:
    folder = small_study(root).folder
    assert Store.open(folder / "store").tasks == ("ScienceQA",), "what comes before, and no more"
    (task,) = studied["tasks"]
    assert (task["task"], task["before"]) == ("VizWiz", ["ScienceQA"])
    named = {name: row for row in task["sets"] for name in row["names"]}
    wanted = {"frequency", "excess", "loss_gain", "greedy", "rule", "first", "middle", "last"}
    assert wanted | {"even", "all"} == set(named) == set(task["chosen"])
    assert sum(row["drawn"] for row in task["sets"]) == 3
    sizes = {row["parameters"] for row in task["sets"] if len(row["layers"]) == 2}
    assert len(sizes) == 1, "alike in all sets of as many layers"
    assert named["all"]["parameters"] <= 1.2 * sizes.pop()
    files = {file.stem for file in (folder / "choice" / "VizWiz").glob("*-0.json")}
    assert len(files) == len(task["sets"])
    assert json.loads((folder / "choice.json").read_text()) == json.loads(json.dumps(studied))
    write_choice_page(folder, studied)
    assert "VizWiz" in (folder / "choice.html").read_text()


def test_the_page_looks_good_everywhere(
    tmp_path: Path, studied: dict[str, Any], browser: Browser
) -> None:
    write_choice_page(tmp_path, studied)
    require_good_file(browser, tmp_path / "choice.html", 60)


def test_a_study_that_was_cut_off_trains_what_is_missing_alone(
    root: Path, studied: dict[str, Any]
) -> None:
    folder = small_study(root).folder / "choice" / "VizWiz"
    files = sorted(folder.glob("*-0.json"))
    lost, before = files[0], {file: file.stat().st_mtime_ns for file in files[1:]}
    lost.unlink()
    again = choice(small_study(root), HOW, lambda _: None)
    assert {file: file.stat().st_mtime_ns for file in files[1:]} == before
    (task,), (earlier,) = again["tasks"], studied["tasks"]
    assert [row["loss"] for row in task["sets"]] == [row["loss"] for row in earlier["sets"]]


def test_a_study_of_another_kind_needs_another_name(root: Path, studied: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"choice\.layers: 2 -> 3"):
        choice(small_study(root), replace(HOW, layers=3), lambda _: None)


@pytest.mark.parametrize(
    ("run", "how", "said"),
    [
        ({"data": {"selection": 0.0}}, {}, "data.selection is 0"),
        ({}, {"tasks": ()}, "choice.tasks is empty"),
        ({}, {"tasks": ("ScienceQA",)}, "'ScienceQA'; of data.tasks, any but the first: VizWiz"),
        ({}, {"tasks": ("OCRVQA",)}, "choice.tasks names 'OCRVQA'"),
        ({"method": "lora"}, {}, "only cmoe with probe.enabled"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_begins(
    run: dict[str, Any], how: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = replace(small_study(tmp_path, **run.get("data", {})), method=run.get("method", "cmoe"))
    with pytest.raises(RunError, match=said):
        choice(config, replace(HOW, **how), lambda _: None)
    assert not config.folder.exists()


def test_a_training_that_the_cluster_has_no_room_for_is_told(root: Path) -> None:
    lines: list[str] = []
    Started(replace(HOW, gpus=0.25), lines.append)
    assert lines == ["choice.gpus is 0.25, and the cluster has 0: waits for a node to join"]
    Started(HOW, lines.append)
    assert len(lines) == 1
