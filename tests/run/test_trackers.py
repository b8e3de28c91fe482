"""Trackers get every step once; none of them can end a run. Real packages, writing to the disk."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tracked import of_mlflow, of_tensorboard, of_wandb
from support.workers import TASKS, small_config

from cmoe.common import packages
from cmoe.common.errors import RunError
from cmoe.config.settings import MlflowConfig, WandbConfig
from cmoe.config.tree import RunConfig
from cmoe.folder import RunFolder, differences
from cmoe.run import trackers
from cmoe.run.launch import run
from cmoe.run.trackers import Point, Tracking, require_trackers

NAME = "train/ScienceQA"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(trackers, "CLOSING_S", 300.0)  # of a busy machine


def followed(root: Path, *names: Any, **more: Any) -> tuple[RunConfig, RunFolder]:
    config = replace(small_config(root, "shown"), trackers=names, **more)
    config.folder.mkdir(parents=True, exist_ok=True)
    return config, RunFolder(config.folder, config.url)


def step(number: int, **more: Any) -> dict[str, Any]:
    """What a worker tells of a step: 2 s and 300 tokens after the one before."""
    return {
        **{"index": 0, "task": "ScienceQA", "phase": "train", "step": number, "steps": 9},
        **{"loss": 1 / number, "learning_rate": 0.1, "tokens": 300 * number},
        **{"time": 1000.0 + 2 * number, "memory": 3 * 2**30, **more},
    }


def told(
    config: RunConfig,
    folder: RunFolder,
    events: Iterable[dict[str, Any]],
    error: BaseException | None = None,
) -> list[str]:
    """What is said while trackers get some events, from the beginning to an end."""
    said: list[str] = []
    tracking = Tracking(config, folder, said.append)
    for event in events:
        tracking.progress(event)
    tracking.close(error)
    return said


RESULTS: list[dict[str, Any]] = [
    {"located": [[40.0, None, None]], "metrics": {"last": 40.0, "bwt": 0.0, "fwt": None}},
    {
        "located": [[40.0, None, None], [30.0, 60.0, None]],
        "metrics": {"last": 45.0, "bwt": -5.0, "fwt": 2.0},
    },
]


def test_all_three_get_every_figure_once_and_go_on_in_the_same_run(tmp_path: Path) -> None:
    """The run is interrupted behind step 3, resumes from a checkpoint behind 1, and finishes."""
    config, folder = followed(tmp_path, "tensorboard", "mlflow", wandb=WandbConfig(mode="offline"))
    assert config.followed == ("tensorboard", "mlflow", "wandb")
    assert told(config, folder, map(step, (1, 2, 3)), KeyboardInterrupt()) == []
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert of_mlflow(uri)["shown"][0] == "KILLED"

    said: list[str] = []
    tracking = Tracking(config, folder, said.append)
    for number in (2, 3, 4):
        tracking.progress(step(number))
    tracking.progress({"index": -1, "phase": "predict", "step": 1, "steps": 2, "time": 1.0})
    for index, results in enumerate(RESULTS):
        tracking.stage(index, results)
    tracking.stage(0, RESULTS[0])  # a restarted group comes by it again
    tracking.close(None)
    assert said == []

    status, mlflow = of_mlflow(uri)["shown"]
    assert status == "FINISHED"
    rows, wandb = of_wandb(folder.path)
    assert rows == sorted(set(rows)), "W&B's own steps go on, too"
    for kept in (mlflow, wandb, of_tensorboard(folder.path)):
        assert kept[f"{NAME}/loss"] == [(n, pytest.approx(1 / n)) for n in (1, 2, 3, 4)]
        assert kept[f"{NAME}/learning_rate"] == [(n, pytest.approx(0.1)) for n in (1, 2, 3, 4)]
        assert kept[f"{NAME}/tokens_per_s"] == [(n, 150) for n in (2, 3, 4)]
        assert kept[f"{NAME}/memory_gib"] == [(n, 3) for n in (1, 2, 3, 4)]
        assert kept[f"accuracy/{TASKS[0]}"] == [(1, 40), (2, 30)]
        assert kept[f"accuracy/{TASKS[1]}"] == [(2, 60)]
        assert kept["accuracy/mean"] == [(1, 40), (2, 45)]
        assert kept["metrics/last"] == [(1, 40), (2, 45)]
        assert kept["metrics/bwt"] == [(1, 0), (2, -5)]
        assert kept["metrics/fwt"] == [(2, 2)], "what isn't known yet isn't logged"


def test_mlflow_knows_how_the_run_is_configured(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/elsewhere.db"
    config, folder = followed(tmp_path, "mlflow", mlflow=MlflowConfig(uri, "mine"))
    assert told(config, folder, [step(1)], ValueError("out of memory")) == []
    assert of_mlflow(uri, "mine")["shown"][0] == "FAILED"
    client = MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert found.data.params["method"] == "cmoe"
    assert found.data.params["data.tasks"] == str(list(config.data.tasks))
    assert not [name for name in found.data.params if name.startswith("mlflow.")]


def test_tokens_per_second_start_anew_where_they_cannot_be_told(tmp_path: Path) -> None:
    """Not over a pause between two trainings, nor over a restart from a checkpoint."""
    config, folder = followed(tmp_path, "tensorboard")
    events = [step(1), step(2), step(5, tokens=100), step(1, task="TextVQA"), step(6)]
    assert told(config, folder, events) == []
    kept = of_tensorboard(folder.path)
    assert kept[f"{NAME}/tokens_per_s"] == [(2, 150)]
    assert "train/TextVQA/tokens_per_s" not in kept
    assert [number for number, _ in kept[f"{NAME}/loss"]] == [1, 2, 5, 6]


def test_without_trackers_nothing_is_kept(tmp_path: Path) -> None:
    config, folder = followed(tmp_path)
    assert told(config, folder, [step(1)]) == []
    assert not [*folder.path.iterdir()]


# What fails


def test_a_server_that_is_away_ends_nothing_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = MlflowConfig("http://127.0.0.1:9")
    config, folder = followed(tmp_path, "mlflow", "tensorboard", mlflow=away)
    (line,) = told(config, folder, map(step, (1, 2, 3)))
    assert line.startswith("tracker mlflow fails, and the run goes on without it: MlflowExcep")
    assert "127.0.0.1" in line
    assert len(of_tensorboard(folder.path)[f"{NAME}/loss"]) == 3, "the other goes on"


class Hanging:
    """A tracker whose server never answers."""

    def __init__(self, *_: Any) -> None:
        self.answer = threading.Event()

    def log(self, point: Point) -> None:
        self.answer.wait()

    def close(self, ending: str) -> None: ...


def test_a_tracker_that_hangs_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "TRACKERS", {**trackers.TRACKERS, "mlflow": Hanging})
    monkeypatch.setattr(trackers, "CLOSING_S", 0.2)
    config, folder = followed(tmp_path, "mlflow")
    (line,) = told(config, folder, map(step, (1, 2)))
    assert line == (
        "tracker mlflow fails, and the run goes on without it: it hasn't ended after 0 s"
    )
    monkeypatch.setattr(trackers, "WAITING", 3)
    (line,) = told(config, folder, map(step, range(3, 12)))
    assert line.endswith("it is 3 points behind")


def test_a_record_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    config, folder = followed(tmp_path, "tensorboard")
    folder.tracked.parent.joinpath("tracked.json").mkdir()
    (line,) = told(config, folder, map(step, (1, 2)))
    assert line.startswith("trackers get nothing more: ")
    assert line.endswith("; the run goes on without")


# What is refused


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "tensorboardX"), ("mlflow", "mlflow")]
)
def test_an_absent_package_is_refused_with_the_command_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, module: str
) -> None:
    found = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda m: None if m == module else found(m))
    config = replace(small_config(tmp_path, "new"), trackers=(name,))
    why = rf"^trackers names {name}, and {name} isn't installed; `pip install 'cmoe\[{name}\]'`"
    with pytest.raises(RunError, match=why):
        run(config, show=print)
    assert not config.folder.exists()
    require_trackers(replace(config, trackers=()))


def test_mlflow_needs_a_server_for_a_run_on_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig("x", runs="s3://bucket/runs", trackers=("mlflow",))
    with pytest.raises(RunError, match=r"where no database of MLflow can be; set mlflow.uri to"):
        require_trackers(config)
    require_trackers(replace(config, mlflow=MlflowConfig("http://127.0.0.1:5000")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    require_trackers(config)


def test_what_contradicts_itself_or_holds_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trackers names wandb, and wandb.mode is disabled; onl"):
        RunConfig("x", trackers=("wandb",))
    assert RunConfig("x", wandb=WandbConfig("offline")).followed == ("wandb",)
    assert RunConfig("x", trackers=("wandb",), wandb=WandbConfig("online")).followed == ("wandb",)
    with pytest.raises(ValueError, match=r"mlflow\.uri holds a password, .* MLFLOW_TRACKING_USER"):
        MlflowConfig("https://me:secret@host/")
    MlflowConfig("https://host:5000/"), MlflowConfig("sqlite:////tmp/mlflow.db")


def test_trackers_may_change_when_a_run_resumes() -> None:
    before = RunConfig("x").as_dict()
    after = RunConfig("x", trackers=("mlflow",), mlflow=MlflowConfig("http://host")).as_dict()
    assert differences(before, after) == []
    del before["trackers"], before["mlflow"]  # a run of an earlier version
    assert differences(before, after) == []
