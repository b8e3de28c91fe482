"""The job on a real Ray cluster of this machine: from the command to the report, through kills."""

from __future__ import annotations

import os
import re
import signal
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml
from support.jobs import JOB, KILLING, finish, matrix_of, same_run, start, until, write_config
from support.tracked import of_mlflow, of_tensorboard, of_wandb
from support.workers import TASKS, run_group, small_config

from cmoe.common.errors import DataError
from cmoe.common.group import Group
from cmoe.common.storage import StorageAwayError, StorageError
from cmoe.config.settings import ClusterConfig, WandbConfig
from cmoe.config.tree import RunConfig
from cmoe.folder import RunFolder
from cmoe.run import launch
from cmoe.run.worker import is_own
from cmoe.store.log import Store

# What happens to each job of a run. Workers live on for a moment when their driver is killed: in
# that job nothing else is to come.
MOMENTS = (
    ("worker-stopped", "worker-training", "driver-between"),
    ("driver-training",),
    ("worker-predicting", "worker-committing"),
)
QUIET = {"WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def whole(root: Path) -> tuple[Path, str]:
    """The folder and the output of a run that nothing disturbed."""
    (root / "temp").mkdir()
    cluster = ClusterConfig(environment={"TMPDIR": str(root / "temp")})
    job = start(JOB, "--config", write_config(root, "whole", cluster=cluster))
    out = finish(job)
    assert job.returncode == 0, out
    return root / "runs" / "whole", out


def test_the_job_leaves_a_whole_run_folder(whole: tuple[Path, str]) -> None:
    folder, out = whole
    for name in (
        "config.yaml",
        "matrix.json",
        "report.json",
        "report.html",
        "report.md",
        "run.log",
        "status.json",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert Store.open(folder / "store").tasks == TASKS
    assert list((folder / "predictions").glob("*.parquet"))
    assert (
        RunConfig(**{"name": "whole"}).as_dict().keys()
        == yaml.safe_load((folder / "config.yaml").read_text()).keys()
    )
    located = matrix_of(folder)["located"]
    assert f"{located[-1][0]:.1f}" in out


def test_every_worker_has_the_environment_that_the_run_names(
    root: Path, whole: tuple[Path, str]
) -> None:
    made = [each.name for each in (root / "temp").glob("cmoe-*")]
    assert sorted(name.rpartition("-")[2] for name in made) == ["0", "1"]


def test_output_that_is_no_terminal_has_no_control_characters(whole: tuple[Path, str]) -> None:
    folder, out = whole
    for text in (out, (folder / "run.log").read_text()):
        assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f]", text)
        assert re.search(r"task 2/3 VizWiz +train +\d+/12 +loss \d", text)
        assert re.search(r"finished after \d+ (s|min)\n", text)
        assert "no progress" not in text
        assert "waiting" not in text


def test_the_log_says_where_the_start_took_its_time(whole: tuple[Path, str]) -> None:
    log = (whole[0] / "run.log").read_text()
    parts = ("Ray", "imports", "loading the base", "reading the tasks", "opening the store")
    told = ", ".join(rf"{part} \d+\.\d s" for part in (*parts, "the first step"))
    assert len(re.findall(rf"the workers have started: {told}\n", log)) == 1


def test_a_finished_run_says_so_and_does_nothing(whole: tuple[Path, str], root: Path) -> None:
    folder, _ = whole
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}
    job = start(JOB, "--config", root / "whole.yaml")
    out = finish(job)
    assert job.returncode == 0
    assert "finished" in out
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()} == before


def test_a_finished_run_that_lost_its_report_gets_it_again_and_learns_nothing(
    whole: tuple[Path, str], root: Path
) -> None:
    """As a job leaves it that was killed after the last answer."""
    folder, _ = whole
    own = (folder / "lease", folder / "run.log", folder / "status.json")  # of every job
    files = (f for f in folder.rglob("*") if f.is_file() and not {f, f.parent} & {*own})
    before = {f: f.read_bytes() for f in files}
    lost = [folder / name for name in ("report.json", "report.html", "report.md")]
    for file in lost:
        file.unlink()
    job = start(JOB, "--config", root / "whole.yaml")
    out = finish(job)
    assert job.returncode == 0, out
    assert "starting Ray" not in out
    assert {f: f.read_bytes() for f in before} == before
    lost[1].unlink()  # a page alone
    assert "finished" in finish(start(JOB, "--config", root / "whole.yaml"))
    assert lost[1].read_bytes() == before[lost[1]]


def test_another_configuration_of_a_name_is_refused(whole: tuple[Path, str], root: Path) -> None:
    job = start(JOB, "--config", root / "whole.yaml", "--probe.alpha", "0.25", "--seed", "7")
    out = finish(job)
    assert job.returncode == 1
    assert "probe.alpha: 0.5 -> 0.25" in out
    assert "seed: 0 -> 7" in out
    lines = (whole[0] / "run.log").read_text().splitlines()
    assert any("refused:" in line and "configured otherwise" in line for line in lines[-4:])


@pytest.fixture(scope="module")
def killed(root: Path) -> list[str]:
    """What a run said that lost its workers and its driver, and that was followed: each job's."""
    wandb = WandbConfig(mode="offline")
    config = write_config(root, "killed", trackers=("tensorboard", "mlflow"), wandb=wandb)
    said = []
    for moments in MOMENTS:
        job = start(KILLING, ",".join(moments), "--config", config, environment=QUIET)
        said.append(finish(job))
        ends_well = moments == MOMENTS[-1]
        assert job.returncode == (0 if ends_well else -signal.SIGKILL), said[-1]
        assert (root / "runs" / "killed" / "report.json").exists() == ends_well
    return said


def test_trackers_get_no_step_twice_whatever_is_killed(killed: list[str], root: Path) -> None:
    """A kill of the driver may cost a step; the last figures are those of the matrix."""
    folder = root / "runs" / "killed"
    metrics = matrix_of(folder)["metrics"]
    status, mlflow = of_mlflow(f"sqlite:///{root}/runs/mlflow.db")["killed"]
    assert status == "FINISHED"
    _, wandb = of_wandb(folder)
    for kept in (mlflow, wandb, of_tensorboard(folder)):
        for name, values in kept.items():
            steps = [step for step, _ in values]
            assert steps == sorted(set(steps)), name
        for name in ("loss", "learning_rate", "tokens_per_s", "memory_gib"):
            assert kept[f"train/{TASKS[-1]}/{name}"][-1][0] == 12
        for name in ("last", "bwt"):
            assert kept[f"metrics/{name}"][-1] == (3, pytest.approx(metrics[name], rel=1e-5))
        assert all(0 < gib < 64 for _, gib in kept[f"train/{TASKS[-1]}/memory_gib"])


def test_killed_workers_and_drivers_end_in_the_same_matrix(
    whole: tuple[Path, str], killed: list[str], root: Path
) -> None:
    folder, out = root / "runs" / "killed", "".join(killed)
    for moment in chain(*MOMENTS):
        assert (folder / f"killed-{moment}").exists(), out
    starts = [re.findall(r"start (\d) of the workers: 2 go on", said) for said in killed]
    assert starts == [["2"], [], ["2", "3"]], "each job begins to count again"
    log = (folder / "run.log").read_text()
    stopped = r"no progress for \d+ s: task 1/3 ScienceQA, train, step \d+ of 12; worker 1 "
    assert re.search(
        stopped + r"\(\S+, pid \d+\) has not answered for \d+ s.*; worker 0 waits", log
    )
    status = RunFolder(folder, str(folder)).read_status()
    assert (status["state"], status["jobs"], status["restarted"]) == ("finished", 3, 3)
    assert all("its process was killed" in restart["why"] for restart in status["restarts"])
    died = re.findall(r"worker (\d) \(\S+, pid \d+\) died: its process was killed", log)
    assert died == ["1", "0", "0"]
    same_run(folder, whole[0])


def test_a_second_job_is_refused_and_ctrl_c_ends_the_first_and_says_how_it_goes_on(
    root: Path,
) -> None:
    job = start(JOB, "--config", write_config(root, "interrupted"))
    log = root / "runs" / "interrupted" / "run.log"
    until(lambda: log.is_file() and "predict" in log.read_text())
    second = start(JOB, "--config", root / "interrupted.yaml")
    refused = finish(second, minutes=2)
    assert second.returncode == 1, refused
    assert f"another job works on it: process {job.pid} of " in refused
    assert len(refused.splitlines()) == 1, "it works before it is refused"
    job.send_signal(signal.SIGINT)
    out = finish(job, minutes=2)
    assert job.returncode == 130, out
    assert "interrupted; the same command goes on" in out
    assert log.read_text().endswith("interrupted; the same command goes on\n")
    job = start(KILLING, "worker-memory", "--config", root / "interrupted.yaml")
    out = finish(job)
    assert job.returncode == 1
    assert "of the workers" not in out, "memory that doesn't suffice isn't tried again"
    end = log.read_text()
    end = end[end.rindex("failed: ") :]
    task, phase = f"({'|'.join(TASKS)})", "(probe|train)"  # as far as the first job had come
    assert "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB." in end
    assert re.search(rf"in task '{task}', phase '{phase}'\n  on worker 1 \(\S+, pid \d+\)", end)
    assert "lower training.micro_batch (now 8)" in end


def test_sigterm_ends_a_run_as_ctrl_c_does(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(launch, "drive", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        launch.run(small_config(root, "terminated"))
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_that_is_too_small_is_refused_at_once(root: Path) -> None:
    job = start(JOB, "--config", write_config(root, "gpus"), "--cluster.gpu", "true")
    out = finish(job)
    assert job.returncode == 1
    assert "2 workers with 1 CPU, 1 GPU each are asked for; this machine has" in out
    assert "0 GPUs in all on 1 machine" in out


def judged(_: Group) -> None:
    import torch.distributed as dist

    assert is_own(AssertionError("of ours"))
    assert is_own(DataError("a broken picture, which no other group could read"))
    assert not is_own(TimeoutError("a peer's"))
    assert not is_own(RuntimeError("a collective lost its peer"))
    assert not is_own(StorageAwayError("it may come back"))
    dist.destroy_process_group()  # as Ray does where another worker has died
    assert not is_own(AssertionError("DeepSpeed backend not set"))
    assert is_own(StorageError("a full disk, whoever fell behind it"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def test_what_comes_of_a_lost_group_is_no_failure_of_a_workers_own() -> None:
    run_group(1, judged)
