"""A task that nothing could score is refused at once, wherever it is asked for."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import JOBS

from cmoe.common.errors import DataError, RunError
from cmoe.common.nearest import unknown
from cmoe.config.parse import parse, parse_job
from cmoe.config.tree import RunConfig
from cmoe.data.coin import read_tasks
from cmoe.data.settings import SCORERS, TASKS, DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.experiments.comparison.runs import require_possible
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.experiments.planning.samples import samples_of
from cmoe.experiments.sweep.settings import BranchConfig, BudgetConfig, SearchConfig
from cmoe.experiments.sweep.sweep import SweepConfig, sweep
from cmoe.mini.tasks import ensure_data
from cmoe.run.launch import read_stream, run
from cmoe.tasks.registry import register_task, score, tasks

WANTED = "names 'MyTask', which has no scorer; there are ScienceQA, TextVQA, ImageNet, GQA, "


def test_every_task_has_a_scorer() -> None:
    assert set(TASKS) == set(tasks())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("gqa", "GQA"),
        ("VQA", "VQAv2"),
        ("vqa2", "VQAv2"),
        ("Grounded", "Grounding"),
        ("Science_QA", "ScienceQA"),
        ("ocr-vqa", "OCRVQA"),
        ("MyTask", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_told(name: str, nearest: str | None) -> None:
    said = unknown(name, TASKS)
    assert said.endswith("VQAv2, OCRVQA" if nearest is None else f"; the nearest is {nearest}")
    with pytest.raises(ValueError, match="has no scorer") as refused:
        RunConfig("x", data=DataConfig(tasks=(name,)))
    assert str(refused.value).endswith(said)
    with pytest.raises(ValueError, match="answer_files names") as refused:
        EvaluationConfig(answer_files={name: "a.json"})
    assert str(refused.value).endswith(said)
    with pytest.raises(ValueError, match="no scorer for task") as refused:
        score(name, "official", [], [])
    assert str(refused.value).endswith(said)


@pytest.mark.parametrize("more", [[], ["--plan"]])
def test_a_run_and_its_plan_refuse_it(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_job({}, ["--name=x", "--data.tasks=[GQA,MyTask]", *more])
    assert ended.value.code == 2
    assert f"data.tasks {WANTED}" in capsys.readouterr().err


@pytest.mark.parametrize("job", ["coin_stream.py", "coin_sweep.py", "coin_locate.py"])
def test_every_job_of_a_configuration_refuses_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    monkeypatch.setattr(sys, "argv", [job, "--name=x", "--data.tasks=[MyTask]"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / job), run_name="__main__")
    assert ended.value.code == 2
    assert f"data.tasks {WANTED}" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--dry-run"], ["--out", "out"]])
def test_preparing_refuses_it(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    more: list[str],
) -> None:
    arguments = ["coin_prepare.py", "--root", str(tmp_path), "--tasks", "GQA", "MyTask", *more]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / "coin_prepare.py"), run_name="__main__")
    assert ended.value.code == 2
    assert f"--tasks {WANTED}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_methods_own_settings_in_a_comparison_refuse_it() -> None:
    how = CompareConfig(methods="lora", settings={"lora": {"data.tasks": ["MyTask"]}})
    with pytest.raises((RunError, SystemExit)):
        require_possible(RunConfig("x"), how)


# Too few samples


def small(tmp_path: Path, train: int, **more: Any) -> RunConfig:
    data = DataConfig(
        root=str(tmp_path / "data"),
        tasks=("GQA",),
        generate=True,
        train_samples=train,
        test_samples=2,
        **more,
    )
    ensure_data(data)
    return RunConfig("x", runs=str(tmp_path / "runs"), data=data)


@pytest.mark.parametrize("method", ["cmoe", "expand_all"])
def test_a_method_that_locates_needs_samples_to_do_it_with(tmp_path: Path, method: Any) -> None:
    """Before anything is trained, also where a selection leaves too few, also in a plan."""
    from dataclasses import replace

    config = replace(small(tmp_path, 7), method=method)
    message = "GQA: 7 training samples; this method needs at least 8 of each task"
    for refusing in (run, read_stream, samples_of):
        with pytest.raises(DataError, match=message):
            refusing(config)
    assert not config.folder.exists()
    for other in ("lora", "zero_shot"):
        assert len(read_stream(replace(config, method=other))[0].train) == 7  # type: ignore[arg-type]


def test_a_selection_may_leave_too_few(tmp_path: Path) -> None:
    config = small(tmp_path, 9, selection=0.2)
    message = r"GQA: 7 training samples, without the data\.selection of 0\.2; .* at least 8"
    for refusing in (run, samples_of):
        with pytest.raises(DataError, match=message):
            refusing(config)
    searched = SweepConfig(config, SearchConfig(), BudgetConfig(), BranchConfig())
    with pytest.raises(DataError, match=message):
        sweep(searched, show=lambda _: None)
    assert not config.folder.exists()


def test_a_plan_refuses_the_rows_that_a_run_refuses(tmp_path: Path) -> None:
    config = small(tmp_path, 8)
    assert samples_of(config)["GQA"].train == 8
    file = tmp_path / "data" / "Instructions_Original" / "GQA" / "train.json"
    text = file.read_text()
    for spoiled, cause in (
        (text.replace("<image>\\n", "</s> ", 1), r"row 0: .* holds '</s>'"),
        (text.replace('"image"', '"images"', 1), "unknown key 'images'"),
        (text.replace('"image": "', '"image": "../', 1), "image must be a path below"),
        (text.replace('"image"', '"id": 1, "image"', 1), "'id' stands twice"),
    ):
        file.write_text(spoiled)
        for refusing in (samples_of, read_stream):
            with pytest.raises(DataError, match=cause) as refused:
                refusing(config)
            assert str(file) in str(refused.value)


def test_a_plan_names_a_registered_task_that_has_no_files(tmp_path: Path) -> None:
    register_task("Registered", scorer="exact")
    try:
        config = RunConfig("x", data=DataConfig(root=str(tmp_path), tasks=("Registered",)))
        with pytest.raises(DataError, match="has no rows of Registered, and how many there are"):
            samples_of(config)
    finally:
        del SCORERS["Registered"]


def test_a_wrong_row_ends_a_run_before_it_begins(tmp_path: Path) -> None:
    config = small(tmp_path, 8)
    file = tmp_path / "data" / "Instructions_Original" / "GQA" / "test.json"
    file.write_text(file.read_text().replace('"answer": "', '"answer": "</s>', 1))
    said: list[str] = []
    with pytest.raises(DataError, match=r"test\.json, row 0: answer holds '</s>'"):
        run(config, show=said.append)
    assert not config.folder.exists()
    workers = read_tasks(config.data, config.seed)  # they take what the driver looked at
    assert len(workers[0].train) == 8


def test_parsing_names_the_tasks_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: x\ndata:\n  tasks: [ScienceQA, textvqa]\n")
    with pytest.raises(SystemExit):
        parse(["--config", str(file)])
    assert "the nearest is TextVQA" in capsys.readouterr().err
