"""Samples are counted where they are, in files, manifests and settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT as REPOSITORY

from cmoe.common.errors import DataError
from cmoe.config.parse import parse
from cmoe.config.tree import RunConfig
from cmoe.data.settings import DataConfig
from cmoe.experiments.planning.samples import samples_of

MINI = REPOSITORY / "configs" / "coin_mini.yaml"


def write_rows(root: Path, task: str, file: str, count: int) -> None:
    folder = root / "Instructions_Original" / task
    folder.mkdir(parents=True, exist_ok=True)
    row = {"image": "not/here.png", "text": "What?", "answer": "yes"}
    (folder / file).write_text(json.dumps([row | {"question_id": i} for i in range(count)]))


def test_samples_are_counted_where_files_are(tmp_path: Path) -> None:
    write_rows(tmp_path, "VizWiz", "train.json", 50)
    write_rows(tmp_path, "VizWiz", "val.json", 7)
    data = DataConfig(root=str(tmp_path), tasks=("VizWiz", "GQA"))

    def of(task: str, **changes: Any) -> tuple[int, int | None, bool]:
        found = samples_of(RunConfig("plan", data=replace(data, **changes)))[task]
        return found.train, found.test, found.published

    assert of("VizWiz") == (50, 7, False)
    assert of("VizWiz", train_samples=20, test_samples=3) == (20, 3, False)
    assert of("VizWiz", selection=0.1) == (45, 7, False)
    assert of("VizWiz", selection=0.1, evaluate_on="selection") == (45, 5, False)
    assert of("GQA") == (72_000, None, True)
    assert of("GQA", train_samples=100)[0] == 100
    write_rows(tmp_path, "VizWiz", "train.json", 50)
    (tmp_path / "Instructions_Original" / "VizWiz" / "train.json").write_text("{")
    with pytest.raises(DataError, match=r"VizWiz/train\.json: not JSON"):
        of("VizWiz")
    generated = samples_of(parse(["--config", str(MINI), f"--data.root={tmp_path / 'new'}"]))
    assert {(s.train, s.test) for s in generated.values()} == {(1600, 200)}


def test_prepared_samples_are_counted_in_their_manifest(tmp_path: Path) -> None:
    tasks = {"GQA": {"train": {"rows": 123}, "test": {"rows": 45}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "tasks": tasks}))
    data = DataConfig(root=str(tmp_path), tasks=("GQA", "VizWiz"))
    found = samples_of(RunConfig("plan", data=data))
    assert (found["GQA"].train, found["GQA"].test, found["GQA"].published) == (123, 45, False)
    assert found["VizWiz"].published
    on_the_hub = replace(data, root="hf://datasets/nobody/nothing")
    assert samples_of(RunConfig("plan", data=on_the_hub))["GQA"].published
