"""What goes on goes on with its own data: a run, a comparison, a sweep, and what a run takes over.

Each is started up to where its processes would begin, without them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.workers import small_config

from cmoe.common.errors import DataError, RunError
from cmoe.common.run_files import RunFileError
from cmoe.config.tree import RunConfig
from cmoe.data.coin import split_file
from cmoe.experiments.comparison import parallel_runs
from cmoe.experiments.comparison.compare import compare
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.experiments.sweep import sweep as sweeping
from cmoe.experiments.sweep.settings import BudgetConfig, SearchConfig
from cmoe.experiments.sweep.space import Candidate, Point
from cmoe.experiments.sweep.sweep import SweepConfig, sweep
from cmoe.experiments.sweep.tuner import _result
from cmoe.folder import DATA, RunFolder
from cmoe.mini.tasks import write_mini_coin
from cmoe.run import launch
from cmoe.run.launch import run

BEGUN = "its processes would begin"
TASKS = ("GQA", "VizWiz")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated") / "data"
    write_mini_coin(root, train=16, test=6)
    return root


@pytest.fixture
def config(generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    def session(*_: Any, **__: Any) -> Any:
        raise RunError(BEGUN)

    monkeypatch.setattr(launch, "session", session)
    monkeypatch.setattr(parallel_runs, "session", session)
    monkeypatch.setattr(sweeping, "cluster", session)
    config = small_config(tmp_path, "mine")
    data = replace(
        config.data,
        tasks=TASKS,
        generate=False,
        train_samples=None,
        test_samples=None,
        selection=0.25,
    )
    shutil.copytree(generated, data.root)
    return replace(config, data=data)


def run_it(config: RunConfig) -> None:
    run(config)


def compare_it(config: RunConfig) -> None:
    compare(config, CompareConfig("zero_shot,lora", seeds=(0, 1)))


def sweep_it(config: RunConfig) -> None:
    sweep(SweepConfig(config, SearchConfig(), BudgetConfig()))


JOBS = {"run": run_it, "comparison": compare_it, "sweep": sweep_it}


def begins(job: Callable[[RunConfig], None], config: RunConfig) -> None:
    with pytest.raises(RunError, match=BEGUN):
        job(config)


def edit(config: RunConfig, task: str, split: str, change: Callable[[list[Any]], Any]) -> None:
    file = split_file(Path(config.data.root), task, split)
    rows = json.loads(file.read_text())
    change(rows)
    file.write_text(json.dumps(rows))


@pytest.mark.parametrize("name", JOBS)
def test_changed_data_is_refused_by_task_and_goes_on_when_it_is_put_back(
    config: RunConfig, name: str
) -> None:
    job, kept = JOBS[name], shutil.copytree(config.data.root, f"{config.data.root}-kept")
    begins(job, config)
    begins(job, config)
    edit(config, "VizWiz", "train", lambda rows: rows.pop(2))
    with pytest.raises(DataError) as raised:
        job(config)
    head, *lines = str(raised.value).splitlines()
    assert str(config.folder / DATA) in head
    assert lines
    assert all(line.strip().startswith("VizWiz, ") for line in lines)
    assert any("before" in line for line in lines)
    shutil.rmtree(config.data.root)
    shutil.copytree(kept, config.data.root)
    begins(job, config)


@pytest.mark.parametrize("name", ["run", "comparison"])
def test_other_tests_and_other_images_are_refused(config: RunConfig, name: str) -> None:
    job = JOBS[name]
    begins(job, config)
    edit(config, "GQA", "test", lambda rows: rows[1].update(answer="teal"))
    image = Path(config.data.root, "images/VizWiz/test/00003.png")
    image.write_bytes(image.read_bytes() + b"more")
    with pytest.raises(DataError) as raised:
        job(config)
    lines = str(raised.value).splitlines()[1:]
    assert any("GQA, test: 1 of 6" in line and "'GQA-test-00001'" in line for line in lines)
    assert any("VizWiz, test: " in line and "another image" in line for line in lines)


def test_a_bad_row_stops_a_run_before_it_is_claimed_and_mended_it_simply_runs(
    config: RunConfig,
) -> None:
    edit(config, "GQA", "test", lambda rows: rows[1].update(answer=None))
    with pytest.raises(DataError, match="row 1"):
        run(config)
    assert not config.folder.exists()
    edit(config, "GQA", "test", lambda rows: rows.pop(1))
    begins(run_it, config)


def test_a_run_without_the_file_takes_the_data_as_it_is_and_says_so(config: RunConfig) -> None:
    """Begun by an earlier version, or told to by the file's removal."""
    begins(run_it, config)
    (config.folder / DATA).unlink()
    edit(config, "GQA", "test", lambda rows: rows.pop(1))
    said: list[str] = []
    with pytest.raises(RunError, match=BEGUN):
        run(config, said.append)
    assert any(f"has no {DATA}; the run goes on with the data as it is now" in s for s in said)
    assert (config.folder / DATA).is_file()


def test_a_finished_run_is_found_so_whatever_became_of_its_data(config: RunConfig) -> None:
    begins(run_it, config)
    found = {"tasks": list(TASKS), "located": [[1.0, None], [1.0, 1.0]]}
    (config.folder / "matrix.json").write_text(json.dumps(found))
    (config.folder / "report.json").write_text("{}")
    shutil.rmtree(config.data.root)
    assert run(config) == found


# Damaged files of a folder that a job reads back

SPOILED = ["{", "[1, 2]", "\0\0\0", '{"located": [1], "located": []}', "{}"]


@pytest.mark.parametrize("text", ["", *SPOILED, '{"located": 3}'])
def test_a_damaged_matrix_is_named(config: RunConfig, text: str) -> None:
    begins(run_it, config)
    file = config.folder / "matrix.json"
    file.write_text(text)
    with pytest.raises(RunFileError, match=r"matrix\.json: damaged: .*remove it"):
        run(config)
    file.unlink()
    begins(run_it, config)


@pytest.mark.parametrize("text", ["", "- 1", "name: a\nname: b", "a: [", "\0", "a: \xff"])
def test_a_damaged_configuration_is_named(config: RunConfig, text: str) -> None:
    begins(run_it, config)
    (config.folder / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunFileError, match=r"config\.yaml: damaged: .*another name"):
        run(config)


@pytest.mark.parametrize("text", SPOILED[:-1])
def test_damaged_notes_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "stages").mkdir()
    folder = RunFolder(tmp_path, str(tmp_path))
    folder.notes(3).write_text(text)
    with pytest.raises(RunFileError, match=r"003\.json: damaged: .*remove it"):
        folder.read_notes(3)
    assert folder.read_notes(4) == {}


@pytest.mark.parametrize("text", SPOILED)
def test_a_damaged_sweep_is_named(config: RunConfig, text: str) -> None:
    begins(sweep_it, config)
    (config.folder / "sweep.json").write_text(text)
    with pytest.raises(RunFileError, match=r"sweep\.json: damaged: .*another name"):
        sweep_it(config)


@pytest.mark.parametrize("text", [None, *SPOILED])
def test_a_trials_result_that_is_lost_or_damaged_is_no_stopped_trial(
    tmp_path: Path, text: str | None
) -> None:
    one = Candidate(((0, 1),), 4, "fresh", 10, Point(0.0, None, "frequency", 1, 4, "used"))
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(RunFileError, match=r"result\.json: (lost|damaged)"):
        _result(tmp_path, one, False)
