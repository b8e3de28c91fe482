"""A comparison as a user starts it: it says what its runs say, and nothing is run twice."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.jobs import JOB, finish, matrix_of, same_run, start, undisturbed, until
from support.workers import TASKS, small_config

from cmoe.common.errors import RunError
from cmoe.config.parse import parse
from cmoe.config.tree import RunConfig
from cmoe.experiments.comparison.runs import of_method, require_possible, slug
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.experiments.comparison.study import location, roc, unknown
from cmoe.experiments.comparison.summary import summed, table
from cmoe.store.log import Store

METHODS = ("zero_shot", "lora", "cmoe")


def write_comparison_config(root: Path) -> Path:
    """Three methods, two candidates for one of them, and a study of one setting."""
    config = small_config(root, "compared").as_dict()
    config["data"] |= {"tasks": list(TASKS[:2]), "selection": 0.25}
    config["data"] |= {"train_samples": 48, "test_samples": 8}
    config["training"] |= {"steps": 4}
    config["cluster"] |= {"workers": 1}
    config |= {
        "methods": ",".join(METHODS),
        "settings": {"lora": {"lora.rank": 4}},
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
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A comparison that was killed once within a run, and then carried to its end."""
    root = tmp_path_factory.mktemp("compare")
    file, folder = write_comparison_config(root), root / "runs" / "compared"
    killed = start(JOB, "--config", file, start_new_session=True)
    until(lambda: (folder / "cmoe-0" / "store" / "000.json").is_file(), minutes=10)
    before = {path: path.stat().st_mtime_ns for path in finished(folder)}
    killed.send_signal(signal.SIGKILL)
    finish(killed)
    job = start(JOB, "--config", file)
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
    assert {"tune-lora-0", "tune-lora-1", "zero_shot-0"} <= runs
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
        folder = compared["folder"] / f"tune-lora-{number}"
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
    config = replace(parse(["--config", str(folder / "config.yaml")]), runs=str(tmp_path))
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
    rows = location(folder, Store.open(folder / "store"), tasks)
    assert [r["tasks"] for r in rows] == [1, 2]
    assert rows[0]["accuracy"] == 100
    assert rows[1]["accuracy"] == pytest.approx(matrix["location"]["accuracy"])
    assert all(r["score_us"] > 0 for r in rows)
    (curve,) = unknown(folder, tasks)
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
    compared: dict[str, Any], flags: tuple[str, str], status: int, said: str
) -> None:
    job = start(JOB, "--config", compared["file"], *flags)
    out = finish(job)
    assert job.returncode == status
    assert said in out
    assert "Traceback" not in out


# What needs no run


CONFIG = RunConfig("all", runs="there")


def test_a_method_runs_in_the_comparisons_folder_with_its_own_settings() -> None:
    one = of_method(CONFIG, "ewc", {"ewc.weight": 7, "lora.rank": 3}, "ewc-4", 4)
    assert (one.url, one.method, one.seed) == ("there/all/ewc-4", "ewc", 4)
    assert (one.ewc.weight, one.lora.rank) == (7.0, 3)
    assert one.training == CONFIG.training


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": "cmoe,magic"}, "'magic' is none; there are zero_shot, lora"),
        ({"methods": "cmoe,cmoe"}, "each once"),
        ({"seeds": ()}, "one or more"),
        ({"seeds": (1, 1)}, "each once"),
        ({"settings": {"magic": {}}}, "'magic' is none"),
        ({"candidate_tasks": 0}, "at least 1, or null"),
        ({"candidates": {"cmoe": [{}, {}], "lwf": [{}], "ewc": []}}, "2 of cmoe, 1 of lwf; as"),
        ({"methods": "lora", "study": {"rank": {"4": {}}}}, "a study is of cmoe"),
    ],
)
def test_an_impossible_comparison_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CompareConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": {"lora": {"lora.size": 3}}}, "method lora: .*lora.size"),
        ({"settings": {"lora": {"lora.rank": 0}}}, "method lora: .*lora.rank is 0"),
        ({"candidates": {"lora": [{"training.zero": 7}]}}, "method lora: .*zero"),
        ({"candidates": {"lora": [{"lora.rank": 3}]}}, "data.selection is 0"),
        ({"methods": "cmoe", "study": {"a": {"b": {"experts.rank": "x"}}}}, "method cmoe: .*rank"),
    ],
)
def test_settings_are_refused_before_anything_starts(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RunError, match=said):
        require_possible(CONFIG, CompareConfig(**({"methods": "lora"} | changes)))


@given(st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_means_and_sample_deviations_are_over_the_seeds(values: list[float]) -> None:
    runs = [
        {"seed": n, "run": f"a-{n}", "last": v, "location": None, "located": [[v]]}
        for n, v in enumerate(values)
    ]
    found = summed(runs)
    assert found["mean"] == {"last": pytest.approx(np.mean(values)), "location": None}
    assert found["deviation"]["last"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert summed(runs[:1])["deviation"] == {"last": None, "location": None}


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_the_area_is_how_often_a_held_out_score_is_larger(
    known: list[int], held_out: list[int]
) -> None:
    pairs = [(h > k) + (h == k) / 2 for h in held_out for k in known]
    fpr, tpr, auc = roc(known, held_out)
    assert auc == pytest.approx(fmean(pairs))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert fpr == sorted(fpr)
    assert tpr == sorted(tpr)


def test_every_point_of_a_curve_is_a_thresholds() -> None:
    known, held_out = [0.0, 1.0, 2.0, 3.0], [2.5, 3.5]
    fpr, tpr, _ = roc(known, held_out)
    reached = set(zip(fpr, tpr, strict=True))
    for threshold in known:
        false = fmean(k >= threshold for k in known)
        assert (false, fmean(h >= threshold for h in held_out)) in reached


def test_rows_on_the_screen_are_the_best_first_and_bounds_last() -> None:
    def method(last: float, knows: str = "") -> dict[str, Any]:
        mean = {"last": last, "mft": 1.0, "maa": 1.0, "bwt": -2.0, "location": None, "added": 5.0}
        deviation = dict.fromkeys(mean, 0.25)
        return {"knows": knows, "mean": mean, "deviation": deviation}

    said = {"methods": {"a": method(10), "b": method(90, "the task"), "c": method(30)}}
    lines = table(said).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["c", "a", "b"]
    assert "30.0 ± 0.2" in lines[1]
    assert lines[3].endswith("(given the task)")


def test_labels_name_folders_and_each_its_own() -> None:
    assert slug("All layers, r/2") == "all-layers-r-2"
    assert slug("-0.5") != slug("0.5")
    how = CompareConfig("cmoe", study={"a": {"x y": {}, "x/y": {}}})
    with pytest.raises(RunError, match=r"two labels .* study-a-x-y"):
        require_possible(CONFIG, how)
