"""A comparison as a user starts it: it says what its runs say, and nothing is run twice.

One of its methods is an installed package's: no file of cmoe's knows of it.
"""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from support.jobs import JOB, finish, matrix_of, same_run, start, undisturbed, until
from support.packages import PULLED, install
from support.workers import TASKS, small_config

from cmoe.config.parse import parse
from cmoe.experiments.comparison.study import location_by_tasks, unknown_curves
from cmoe.store.log import Store

METHODS = ("zero_shot", "lora", "cmoe", "pulled")
WEIGHT = 1e4


def write_comparison_config(root: Path) -> Path:
    """Four methods, two candidates for one of them, and a study of one setting."""
    config = small_config(root, "compared").as_dict()
    config["data"] |= {"tasks": list(TASKS[:2]), "selection": 0.25}
    config["data"] |= {"train_samples": 48, "test_samples": 8}
    config["training"] |= {"steps": 4}
    config["cluster"] |= {"workers": 1}
    config |= {
        "methods": ",".join(METHODS),
        "settings": {"lora": {"lora.rank": 4}},
        "pull": {"weight": WEIGHT},
        "candidates": {
            "lora": [{"training.learning_rate": 1e-7}, {"training.learning_rate": 0.01}]
        },
        "candidate_tasks": 1,
        "at_once": 2,
        "study": {"rank": {"2 of 8": {"experts.rank": 2}}},
    }
    file = root / "compared.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install(PULLED, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, package: dict[str, str]) -> dict[str, Any]:
    """A comparison that was killed once within a run, and then carried to its end."""
    root = tmp_path_factory.mktemp("compare")
    file, folder = write_comparison_config(root), root / "runs" / "compared"
    killed = start(JOB, "--config", file, environment=package, start_new_session=True)
    until(lambda: (folder / "cmoe-0" / "store" / "000.json").is_file(), minutes=10)
    before = {path: path.stat().st_mtime_ns for path in finished(folder)}
    killed.send_signal(signal.SIGKILL)
    finish(killed)
    job = start(JOB, "--config", file, environment=package)
    out = finish(job, minutes=10)
    assert job.returncode == 0, out
    return {
        "folder": folder,
        "out": out,
        "before": before,
        "said": json.loads((folder / "comparison.json").read_text()),
        "file": file,
    }


def finished(folder: Path) -> list[Path]:
    """The files of runs that have come to their end, but for Ray's own."""
    ended = [f.parent for f in folder.glob("*/report.html")]
    files = (path for run in ended for path in run.rglob("*") if path.is_file())
    return [path for path in files if "train" not in path.relative_to(folder).parts]


def test_what_was_finished_is_not_touched_again(compared: dict[str, Any]) -> None:
    runs = {path.relative_to(compared["folder"]).parts[0] for path in compared["before"]}
    assert {"tune-lora-0-0", "tune-lora-1-0", "zero_shot-0"} <= runs
    for path, written in compared["before"].items():
        assert path.stat().st_mtime_ns == written, path
    begun = set(re.findall(r"^(\S+): begun", compared["out"], re.MULTILINE))
    assert "cmoe-0" in begun
    assert not begun & runs


def test_every_figure_is_its_runs(compared: dict[str, Any]) -> None:
    said = compared["said"]
    assert list(said["methods"]) == list(METHODS)
    for method, mine in said["methods"].items():
        (one,) = mine["runs"]
        matrix = json.loads((compared["folder"] / f"{method}-0" / "matrix.json").read_text())
        assert one["run"] == f"{method}-0"
        assert one["last"] == matrix["metrics"]["last"] == fmean(matrix["located"][-1])
        assert one["added"] == matrix["parameters"]["added"]
        assert one["location"] == (matrix["location"] or {"accuracy": None})["accuracy"]
        assert mine["mean"]["last"] == one["last"]
        assert mine["deviation"]["last"] is None, "one seed has none"
        assert method in compared["out"]
    assert said["methods"]["zero_shot"]["runs"][0]["trainable"] == 0
    assert (compared["folder"] / "comparison.html").stat().st_size > 10_000


def test_settings_are_chosen_on_the_selection_split(compared: dict[str, Any]) -> None:
    mine = compared["said"]["methods"]["lora"]
    lasts = [one["last"] for one in mine["tuned"]["candidates"]]
    chosen = mine["tuned"]["chosen"]
    assert lasts[chosen] == max(lasts)
    assert mine["settings"] == {"lora.rank": 4, **mine["tuned"]["candidates"][chosen]["settings"]}
    for number, last in enumerate(lasts):
        folder = compared["folder"] / f"tune-lora-{number}-0"
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["data"]["evaluate_on"] == "selection"
        assert config["data"]["tasks"] == [TASKS[0]]
        assert matrix_of(folder)["metrics"]["last"] == last
    final = yaml.safe_load((compared["folder"] / "lora-0" / "config.yaml").read_text())
    assert final["data"]["evaluate_on"] == "test"
    assert final["lora"]["rank"] == 4
    rate = mine["tuned"]["candidates"][chosen]["settings"]["training.learning_rate"]
    assert final["training"]["learning_rate"] == rate


def test_what_a_chosen_candidate_learned_is_not_learned_again(
    compared: dict[str, Any], tmp_path: Path
) -> None:
    folder = compared["folder"] / "lora-0"
    assert "begins with" not in compared["out"], "it did so before the kill"
    log = (folder / "run.log").read_text()
    assert [n for n in (1, 2) if re.search(rf"task {n}/2 \w+ +train", log)] == [2]
    # It is what the run would have come to by itself, and so are its costs but for the times.
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    del settings["pull"]  # the package's; it isn't installed here
    file = tmp_path / "alone.yaml"
    file.write_text(yaml.safe_dump(settings))
    config = replace(parse(["--config", str(file)]), runs=str(tmp_path))
    alone = undisturbed(config, workers=1)
    same_run(folder, alone)
    found, mine = (json.loads((f / "matrix.json").read_text()) for f in (folder, alone))
    assert found["learning_flops"] == mine["learning_flops"]
    for task in TASKS[:2]:
        assert found["seconds"][task].keys() == mine["seconds"][task].keys()


def test_the_study_is_of_the_same_stream(compared: dict[str, Any]) -> None:
    study, folder = compared["said"]["study"], compared["folder"] / "cmoe-0"
    ((group,), tasks) = study["groups"], TASKS[:2]
    (variant,) = group["variants"]
    assert (group["name"], variant["label"]) == ("rank", "2 of 8")
    other = compared["folder"] / variant["runs"][0]["run"]
    assert Store.open(other / "store").records()[0].rank == 2
    assert variant["runs"][0]["last"] == matrix_of(other)["metrics"]["last"]
    # What was located in the end, and who was called unknown, counted again by themselves.
    matrix = matrix_of(folder)
    rows = location_by_tasks(folder, Store.open(folder / "store"), tasks)
    assert [r["tasks"] for r in rows] == [1, 2]
    assert rows[0]["accuracy"] == 100
    assert rows[1]["accuracy"] == pytest.approx(matrix["location"]["accuracy"])
    assert all(r["score_us"] > 0 for r in rows)
    (curve,) = unknown_curves(folder, tasks)
    assert (curve["held_out"], curve["known"]) == (tasks[1], 1)
    assert curve == study["unknown"]["curves"][0]
    records = Store.open(folder / "store").records()
    for row in study["diversity"]:
        grown = (record.decision["experts"].get(str(row["layer"]), 0) for record in records)
        assert row["experts"] == sum(grown)


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (("--training.steps", "7"), 1, "training.steps: 4 -> 7"),
        (("--settings", '{"lora": {"lora.size": 3}}'), 2, "lora: unknown key 'lora.size'"),
    ],
)
def test_what_can_not_be_compared_ends_by_name(
    compared: dict[str, Any],
    package: dict[str, str],
    flags: tuple[str, str],
    status: int,
    said: str,
) -> None:
    job = start(JOB, "--config", compared["file"], *flags, environment=package)
    out = finish(job)
    assert job.returncode == status
    assert said in out
    assert "Traceback" not in out


# A method of an installed package


def test_its_module_is_short() -> None:
    assert len((PULLED / "cmoe_pulled.py").read_text().splitlines()) <= 40


def test_help_has_its_name_its_section_and_its_keys(package: dict[str, str]) -> None:
    short = finish(start(JOB, "--help", environment=package))
    assert re.search(r"^  pulled +one LoRA that is pulled back", short, re.MULTILINE)
    assert re.search(r"^sections.*\n.*, pull", short, re.MULTILINE)
    everything = finish(start(JOB, "--help", "all", environment=package))
    assert re.search(r"^Of `pulled`:\n  --pull CONFIG", everything, re.MULTILINE)
    assert re.search(r"^  --pull.weight WEIGHT\s.*default: 1", everything, re.MULTILINE)


def test_a_plan_says_that_it_has_no_formula(package: dict[str, str]) -> None:
    job = start(JOB, "--name", "x", "--method", "pulled", "--plan", environment=package)
    assert finish(job) == (
        "coin_stream.py: method is pulled; --plan knows cmoe, expand_all, lora\n"
    )
    assert job.returncode == 2


def test_it_is_compared_as_any_other(compared: dict[str, Any]) -> None:
    folder, said = compared["folder"], compared["said"]
    mine = said["methods"]["pulled"]
    assert mine["about"] == "one LoRA that is pulled back to where the task before ended"
    assert mine["knows"] == ""
    (row,) = mine["runs"]
    assert len(row["located"]) == 2
    assert 0 <= row["last"] <= 100
    page = (folder / "comparison.html").read_text()
    assert re.search(r"<th[^>]*>\s*(<[^>]+>\s*)*pulled\b", page)
    assert f"<dt>pulled</dt><dd>{mine['about']}</dd>" in page
    assert "pulled" in (folder / "pulled-0" / "report.html").read_text()


def test_its_run_has_its_settings_and_obeys_them(compared: dict[str, Any]) -> None:
    """At such a weight the second task moves the adapter less than the first one did."""
    folder = compared["folder"] / "pulled-0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["method"], config["pull"]) == ("pulled", {"weight": WEIGHT})
    store = Store.open(folder / "store")
    store.verify()
    first, second = (store.read(index).experts for index in range(2))
    (one, other) = ({n: t for n, t in e.items() if "lora_B" in n} for e in (first, second))
    learned = sum(float(t.norm()) for t in one.values())  # from 0
    assert 0 < sum(float((other[n] - t).norm()) for n, t in one.items()) < 0.5 * learned
    matrix = json.loads((folder / "matrix.json").read_text())
    assert matrix["method"] == "pulled"
