"""A method of an installed package in a comparison: no file of cmoe's knows of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.jobs import JOB, finish, start
from support.packages import REPLAY, install
from support.workers import TASKS, small_config

from cmoe.store.log import Store

KEPT = 5  # samples of each task


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install(REPLAY, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, package: dict[str, str]
) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("own")
    config = small_config(root, "compared").as_dict()
    config["data"] |= {"tasks": list(TASKS[:2]), "train_samples": 32, "test_samples": 6}
    config["training"] |= {"steps": 2}
    config["locator"] |= {"steps": 10}
    config["cluster"] |= {"workers": 1}
    config |= {"methods": "cmoe,replay", "at_once": 2, "replay": {"samples": KEPT}}
    file = root / "compared.yaml"
    file.write_text(yaml.safe_dump(config))
    job = start(JOB, "--config", file, environment=package)
    out = finish(job, minutes=10)
    assert job.returncode == 0, out
    folder = root / "runs" / "compared"
    return folder, json.loads((folder / "comparison.json").read_text())


def test_its_module_is_short() -> None:
    assert len((REPLAY / "cmoe_replay.py").read_text().splitlines()) <= 40


def test_help_has_its_name_its_section_and_its_keys(package: dict[str, str]) -> None:
    short = finish(start(JOB, "--help", environment=package))
    assert re.search(r"^  replay +one LoRA that trains on samples of earlier", short, re.MULTILINE)
    assert re.search(r"^sections.*\n.*, replay", short, re.MULTILINE)
    everything = finish(start(JOB, "--help", "all", environment=package))
    assert re.search(r"^Of `replay`:\n  --replay CONFIG", everything, re.MULTILINE)
    assert re.search(r"^  --replay.samples SAMPLES\n.*default: 8", everything, re.MULTILINE)


def test_a_plan_says_that_it_has_no_formula(package: dict[str, str]) -> None:
    job = start(JOB, "--name", "x", "--method", "replay", "--plan", environment=package)
    assert finish(job) == (
        "coin_stream.py: method is replay; --plan knows cmoe, expand_all, lora\n"
    )
    assert job.returncode == 2


def test_it_is_compared_as_any_other(compared: tuple[Path, dict[str, Any]]) -> None:
    folder, said = compared
    assert list(said["methods"]) == ["cmoe", "replay"]
    mine = said["methods"]["replay"]
    assert mine["about"] == "one LoRA that trains on samples of earlier tasks again"
    assert mine["knows"] == ""
    (row,) = mine["runs"]
    assert len(row["located"]) == 2
    assert 0 <= row["last"] <= 100
    page = (folder / "comparison.html").read_text()
    assert re.search(r"<th[^>]*>\s*(<[^>]+>\s*)*replay\b", page)
    assert f"<dt>replay</dt><dd>{mine['about']}</dd>" in page
    assert "replay" in (folder / "replay-0" / "report.html").read_text()


def test_its_run_has_its_settings_and_keeps_what_it_kept(
    compared: tuple[Path, dict[str, Any]],
) -> None:
    folder = compared[0] / "replay-0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["method"], config["replay"]) == ("replay", {"samples": KEPT})
    store = Store.open(folder / "store")
    store.verify()
    for index in range(2):
        rows = json.loads(bytes(store.read(index).memory["rows"].tolist()))
        assert len(rows) == KEPT
    matrix = json.loads((folder / "matrix.json").read_text())
    assert matrix["method"] == "replay"
