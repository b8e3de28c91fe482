"""What runs no longer need goes when it is asked for; what says what came of them stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from support.jobs import REPOSITORY
from support.logs import Place, two_in

from cmoe.cli.main import main
from cmoe.common.remote.mirror import abandoned_copies, mirrored
from cmoe.common.storage import StorageError, filesystem
from cmoe.evaluation.predictions import Evaluated, Key, Stage, write_answers, write_stage
from cmoe.operations.prune import look, prune
from cmoe.run import holder as holder_module
from cmoe.run import lease

TASKS = ["GQA", "VQAv2"]
HALF = f"report.html.{'a' * 32}.tmp"
HOLD = (
    "import sys, time\n"
    "from cmoe.run.lease import held\n"
    "from cmoe.common.remote.mirror import mirrored\n"
    "with held(sys.argv[1]), mirrored(sys.argv[1]) as mirror:\n"
    "    (mirror.folder / 'config.yaml').write_text('a')\n"
    "    print(mirror.folder, flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture(params=["disk", "s3"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A finished run, a stopped one and one whose figures are damaged, beside other folders."""
    here = tmp_path / "runs"
    for name, tasks in (("done", TASKS), ("stopped", TASKS[:1]), ("damaged", TASKS)):
        fill(here / name, tasks)
    (here / "damaged" / "matrix.json").write_text("{")
    (here / "data").mkdir()
    (here / "data" / "rows.json").write_text("[]")
    if request.param == "disk":
        return str(here)
    url = str(request.getfixturevalue("bucket")).replace("prepared", "runs")
    fs, root = filesystem(url)
    for file in (file for file in here.rglob("*") if file.is_file()):
        fs.pipe_file(f"{root}/{file.relative_to(here).as_posix()}", file.read_bytes())
    return url


def fill(run: Path, evaluated: list[str]) -> None:
    run.mkdir(parents=True)
    if run.name == "done":
        two_in(Place(str(run / "store"), {}))
    config = {"name": run.name, "data": {"tasks": TASKS}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "matrix.json").write_text(json.dumps({"located": [[1.0] for _ in evaluated]}))
    for name in ("report.json", "report.md", "coin/GQA.jsonl", "stages/000.json", HALF):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("kept")
    (run / "train" / "checkpoint_0" / "rank").mkdir(parents=True)
    (run / "train" / "checkpoint_0" / "rank" / "weights.pt").write_bytes(b"w" * 5000)
    (run / "train" / "state.json").write_bytes(b"s" * 120)
    predictions = run / "predictions"
    predictions.mkdir()
    needed = write_answers(predictions, 0, {Key("GQA", "1", "q", "p"): "yes"})
    write_answers(predictions, 0, {Key("GQA", "1", "other", "p"): "no"})
    write_stage(predictions, 0, Evaluated({"GQA": Stage(["1"], ["q"], [0], [False], [[]])},
                                          ["b", "p"], [needed]))  # fmt: skip
    (predictions / "survey-000.safetensors").write_text("kept")


def names(url: str) -> set[str]:
    fs, root = filesystem(url)
    return {path.removeprefix(f"{root}/") for path in fs.find(root)}


def test_a_look_names_what_can_go_and_changes_nothing(runs: str) -> None:
    before = names(runs)
    found, copies = look(runs, stopped=False)
    assert [(run.url.rpartition("/")[2], run.state) for run in found] == [
        ("damaged", "damaged"), ("done", "finished"), ("stopped", "stopped"),
    ]  # fmt: skip
    damaged, done, stopped = found
    assert "matrix.json: damaged" in damaged.said
    assert not damaged.removable
    assert not stopped.removable
    sizes = {each.name: (each.files, each.size) for each in done.removable}
    (answers,) = (name for name in sizes if name.startswith("predictions/"))
    assert sizes == {"train": (2, 5120), HALF: (1, 4), answers: (1, sizes[answers][1])}
    assert copies == []
    assert names(runs) == before


def test_what_is_named_goes_and_the_rest_stays(runs: str) -> None:
    before = names(runs)
    found, _ = look(runs, stopped=False)
    done = next(run for run in found if run.state == "finished")
    for run in found:
        prune(run)
    gone = before - names(runs)
    listed = tuple(f"done/{each.name}" for each in done.removable)
    assert gone == {name for name in before if name.startswith(listed)}
    assert len(gone) == 4
    again, _ = look(runs, stopped=False)
    assert not [each for run in again for each in run.removable]
    Place(f"{runs}/done/store", {}).open().verify()


def test_of_a_stopped_run_checkpoints_go_on_request_and_answers_stay(runs: str) -> None:
    found, _ = look(f"{runs}/stopped", stopped=True)
    assert [[each.name for each in run.removable] for run in found] == [[HALF, "train"]]
    prune(found[0])
    left = names(f"{runs}/stopped")
    assert not [name for name in left if name.startswith("train/")]
    assert len([name for name in left if name.startswith("predictions/answers-")]) == 2


@contextmanager
def job(url: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A job that drives a run, and the folder that it works in: of one on S3 a local copy."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, url], cwd=REPOSITORY, text=True, stdout=-1
    )
    try:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()


def test_what_a_job_drives_is_left_alone_even_if_it_begins_after_the_look(runs: str) -> None:
    (found,), _ = look(f"{runs}/done", stopped=True)
    assert found.removable
    with job(f"{runs}/done") as (process, folder):
        before = names(runs)
        with pytest.raises(StorageError, match=rf"another job works on it: process {process.pid} "):
            prune(found)
        assert names(runs) == before
        driven, copies = look(runs, stopped=True)
        assert {run.url: run.state for run in driven}[f"{runs}/done"] == "running"
        assert copies == [], "a copy that is worked in"
        assert folder.is_dir()


def test_a_killed_jobs_copy_is_named_and_removed(
    runs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with job(f"{runs}/done") as (_, copy):
        pass
    copies = abandoned_copies(runs)
    if "://" not in runs:
        assert copies == []
        return
    (left,) = copies
    assert (left.url, left.folder) == (f"{runs}/done", copy.parent)
    assert left.files == 2
    assert abandoned_copies(f"{runs}/don") == [], "of another run"
    assert main(["store", "prune-runs", runs]) == 0
    assert f"{left.folder}: a killed job's copy of {runs}/done\n" in capsys.readouterr().out
    assert copy.is_dir()
    left.remove()
    assert not copy.parent.exists()
    assert copy.parent.parent == Path(tempfile.gettempdir())


def test_a_copy_is_called_as_its_run_and_leaves_nothing(bucket: str) -> None:
    with mirrored(f"{bucket}/a_run") as mirror:
        assert mirror.folder.name == "a_run"
        assert abandoned_copies(bucket) == []
    assert not mirror.folder.parent.exists()


def test_a_job_of_another_machine_whose_last_sign_is_old_is_watched_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(holder_module, "_now", lambda: "2000-01-01 00:00:00 UTC")
    fill(tmp_path / "lively", TASKS)
    fill(tmp_path / "silent", TASKS)
    with lease.held(str(tmp_path / "lively")):
        monkeypatch.setattr(holder_module, "_machine", lambda: "another machine")
        (tmp_path / "silent" / "lease").mkdir()
        (mine,) = (tmp_path / "lively" / "lease").iterdir()
        (tmp_path / "silent" / "lease" / "0001.json").write_bytes(mine.read_bytes())
        found, _ = look(str(tmp_path), stopped=False)
        assert [run.state for run in found] == ["running", "finished"]
        monkeypatch.undo()


def test_the_command_lists_first_and_removes_when_told(
    runs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(runs)
    assert main(["store", "prune-runs", runs]) == 0
    out = capsys.readouterr().out
    assert f"{runs}/done: finished\n" in out
    assert "  train: checkpoints; 2 files, 5 KiB\n" in out
    assert f"{runs}/stopped: stopped; --stopped looks at it, too\n" in out
    assert out.splitlines()[-1].endswith("; nothing was removed, --remove removes it")
    assert names(runs) == before
    assert main(["store", "prune-runs", runs, "--stopped", "--remove"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("; removed")
    assert not [name for name in names(runs) if "/train/" in name and "damaged" not in name]
    assert main(["store", "prune-runs", f"{runs}/nowhere"]) == 1
    assert "no run is there; give a folder of runs" in capsys.readouterr().err


def test_one_run_that_can_not_be_pruned_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "a", TASKS)
    fill(tmp_path / "b", TASKS)
    holder = {**vars(lease.Holder.here()), "pid": os.getpid()}
    found, _ = look(str(tmp_path), stopped=False)
    (tmp_path / "a" / "lease").mkdir()
    (tmp_path / "a" / "lease" / "0001.json").write_text(json.dumps(holder))
    monkeypatch.setattr("cmoe.operations.prune.look", lambda *_, **__: (found, []))
    assert main(["store", "prune-runs", str(tmp_path), "--remove"]) == 1
    out = capsys.readouterr().out
    assert f"left there: {tmp_path}/a: another job works on it: process {os.getpid()} " in out
    assert out.endswith("; 1 were left there\n")
    assert (tmp_path / "a" / "train").is_dir()
    assert not (tmp_path / "b" / "train").exists()
