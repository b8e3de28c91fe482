"""Sweeps on a real Ray: one probe run, each candidate once, the winner's own weights in the log."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from support.tiny_cmoe import learn, make_method
from support.workers import METHOD, small_config

from cmoe.common import packages
from cmoe.common.errors import RunError
from cmoe.experiments.sweep import worker
from cmoe.experiments.sweep.settings import BranchConfig, BudgetConfig, SearchConfig
from cmoe.experiments.sweep.space import Probed, candidate, points
from cmoe.experiments.sweep.sweep import SweepConfig, require_affordable, sweep, task_work
from cmoe.experiments.sweep.tuner import keeping_cause, open_store
from cmoe.store.log import Store, StoreError

TASKS = ("ScienceQA", "VizWiz")
SEARCH = SearchConfig(alpha=(-1.0, 3.0), score=("frequency", "loss_gain"), trials=4)
Swept = tuple[SweepConfig, dict[str, Any]]


def small_sweep(folder: Path, name: str, changes: Mapping[str, Any] | None = None) -> SweepConfig:
    """Two tasks of a few steps; four points a task, which come to fewer candidates."""
    changes = changes or {}
    run = small_config(folder, name)
    small = {"train_samples": 48, "test_samples": 8}
    data = {"tasks": TASKS, "selection": 0.25, **small} | changes.get("data", {})
    run = replace(
        run,
        data=replace(run.data, **data),
        training=replace(run.training, steps=4, checkpoint_every=2),
        cluster=replace(run.cluster, max_failures=0),
    )
    search = replace(SEARCH, **changes.get("search", {}))
    budget, branch = (changes.get(part, {}) for part in ("budget", "branch"))
    return SweepConfig(run, search, BudgetConfig(**budget), BranchConfig(**branch))


def decisions(said: dict[str, Any]) -> list[dict[str, Any]]:
    """What a sweep decided: everything but times."""
    return [
        {n: v for n, v in task.items() if "seconds" not in n and n != "results"}
        | {"results": [{n: v for n, v in r.items() if n != "seconds"} for r in task["results"]]}
        for task in said["tasks"]
    ]


def weights(store: str) -> list[dict[str, str]]:
    """Digests of every file of a store."""
    records = Store.open(store).records()
    return [{part: file.sha256 for part, file in r.files.items()} for r in records]


# A sweep that is killed is a process of its own, as a user starts it; on a cluster that was there
# before, as all are.


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster that was there before, and stays."""
    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def idle() -> bool:
    """Whether nothing on the cluster holds anything."""
    groups = ray.util.placement_group_table().values()
    free, there = ray.available_resources(), ray.cluster_resources()
    return all(g["state"] == "REMOVED" for g in groups) and free.get("CPU", 0) == there["CPU"]


def comes_to_rest() -> None:
    deadline = time.monotonic() + 30
    while not idle():
        left = ray.util.placement_group_table(), ray.available_resources()
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


@dataclass(frozen=True)
class Started:
    """A sweep in a process of its own, and the file of its output."""

    process: BaseProcess
    output: Path

    def until(self, folder: Path, pattern: str) -> None:
        deadline = time.monotonic() + 300
        while not list(folder.glob(pattern)):
            assert self.process.is_alive(), self.output.read_text()
            assert time.monotonic() < deadline, f"no {pattern}"
            time.sleep(0.1)

    def ended(self, *, well: bool) -> str:
        """What it said; nothing of it is left on the cluster."""
        self.process.join(timeout=300)
        output = self.output.read_text()
        assert self.process.exitcode is not None, output
        assert (self.process.exitcode == 0) == well, output
        comes_to_rest()
        return output


def started(root: Path, name: str, cluster: str, changes: Mapping[str, Any]) -> Started:
    """A sweep as a user starts it, but for its imports: they are done by then."""
    output = root / f"{name}.txt"
    work = (root, name, cluster, changes, output)
    process = multiprocessing.get_context(METHOD).Process(target=_sweep, args=work)
    process.start()
    return Started(process, output)


def _sweep(root: Path, name: str, cluster: str, changes: Mapping[str, Any], output: Path) -> None:
    os.environ["RAY_ADDRESS"] = cluster
    with open(output, "w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where tests are in background
    sweep(small_sweep(root, name, changes))


def swept_as(root: Path, name: str, changes: Mapping[str, Any] | None = None) -> Swept:
    """A sweep of this process, and what its file says."""
    config = small_sweep(root, name, changes)
    sweep(config)
    comes_to_rest()
    return config, json.loads((config.run.folder / "sweep.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def swept(root: Path, cluster: str) -> Swept:
    return swept_as(root, "swept")


def test_the_winners_own_weights_are_committed(swept: Swept) -> None:
    config, said = swept
    store = Store.open(config.run.folder / "store")
    store.verify()
    assert store.tasks == TASKS
    for index, task in enumerate(said["tasks"]):
        folder = config.run.folder / "sweep" / f"{index:03d}-{task['task']}"
        kept = Store.open(folder / task["winner"] / "primitive").records()[0]
        record = store.records()[index]
        assert record.files == kept.files
        (result,) = (r for r in task["results"] if r["name"] == task["winner"])
        assert sum(record.parameters.values()) == result["parameters"] == task["parameters"]
        assert result["accuracy"] == task["accuracy"] == max(r["accuracy"] for r in task["results"])
        assert result["samples"] == 12, "the selection split"


def test_points_that_come_to_the_same_are_trained_once(
    swept: Swept,
) -> None:
    config, said = swept
    first, second = said["tasks"]
    assert (len(first["points"]), first["trials"]) == (4, 1), "a first task grows everywhere"
    assert first["probes"] is None
    assert 1 < second["trials"] < len(second["points"]) == 4
    assert {p["candidate"] for p in second["points"]} == {c["name"] for c in second["candidates"]}
    folder = config.run.folder / "sweep" / "001-VizWiz"
    results = sorted(p.parent.name for p in folder.glob("*/result.json"))
    assert results == sorted([c["name"] for c in second["candidates"]] + ["probe"])
    for one in second["candidates"]:
        decision = Store.open(folder / one["name"] / "primitive").read(0).decision
        assert decision["experts"] == {str(k): v for k, v in one["experts"].items()}
    assert second["saved_seconds"]["shared probe"] > 0
    assert second["saved_seconds"]["same candidate"] > 0


def test_a_finished_sweep_does_nothing_and_another_search_is_refused(swept: Swept) -> None:
    config, said = swept
    lines: list[str] = []
    assert sweep(config, lines.append) == said
    assert "this sweep is finished" in lines[0]
    other = replace(config, search=replace(SEARCH, alpha=(0.5,)))
    with pytest.raises(RunError, match=r"search.alpha \[-1.0, 3.0\], not \[0.5\]"):
        sweep(other)
    with pytest.raises(RunError, match=r"seed: 0 -> 1"):
        sweep(replace(config, run=replace(config.run, seed=1)))


@pytest.fixture(scope="module")
def resumed(root: Path, cluster: str, swept: Swept) -> tuple[Swept, dict[str, str]]:
    """One task is added to a log that is there; the sweep fails, is interrupted and killed.

    What the test split says is noise. With it is what the sweep said when it failed, and when it
    was interrupted.
    """
    run = swept[0].run
    noisy, log = root / "noisy", root / "log"
    shutil.copytree(run.data.root, noisy)
    files = [*noisy.glob("Instructions_Original/*/test.json"), *noisy.glob("*/*/val.json")]
    assert len(files) == 8
    for file in files:
        rows = json.loads(file.read_text())
        for number, row in enumerate(rows):
            row["answer"] = f"noise {number}"
        file.write_text(json.dumps(rows))
    shutil.copytree(run.folder / "store", log)
    (log / "001.json").unlink()
    branch = {"task": TASKS[1], "store": str(log)}
    changes = {"data": {"root": str(noisy)}, "branch": branch}
    config = small_sweep(root, "killed", changes)
    folder, outputs = config.run.folder, {}

    def until(pattern: str) -> Started:
        begun = started(root, "killed", cluster, changes)
        begun.until(folder / "sweep/001-VizWiz", pattern)
        return begun

    begun = until("tune-probe/*/")
    header = log / "stream.json"
    text = header.read_text()
    header.write_text("{}")
    outputs["failed"] = begun.ended(well=False)
    header.write_text(text)
    begun = until("tune-[0-9a-f]*/*/")
    assert begun.process.pid is not None
    os.kill(begun.process.pid, signal.SIGINT)
    outputs["interrupted"] = begun.ended(well=False)
    begun = until("*x*/result.json")
    begun.process.kill()
    begun.process.join()
    comes_to_rest()
    assert len(Store.open(log)) == 1, "in the middle of the task"
    started(root, "killed", cluster, changes).ended(well=True)
    return (config, json.loads((folder / "sweep.json").read_text(encoding="utf-8"))), outputs


def test_killed_and_with_noise_for_test_labels_it_comes_to_the_same_winners(
    resumed: tuple[Swept, dict[str, str]], swept: Swept
) -> None:
    """Neither SIGKILL nor what the test split says changes a decision or a weight."""
    (config, found), _ = resumed
    assert decisions(found) == decisions(swept[1])[1:]
    assert weights(config.store) == weights(swept[0].store)


@pytest.mark.parametrize(
    ("end", "cause"), [("interrupted", "KeyboardInterrupt"), ("failed", "StoreError")]
)
def test_nothing_of_a_sweep_that_ends_early_stays_on_the_cluster(
    resumed: tuple[Swept, dict[str, str]], end: str, cause: str
) -> None:
    """The cluster was looked at before the next began."""
    assert cause in resumed[1][end]


def test_a_task_that_the_store_has_learned_is_not_added_again(
    root: Path, resumed: tuple[Swept, dict[str, str]]
) -> None:
    (config, _), _ = resumed
    branch = {"task": TASKS[1], "store": config.store}
    again = small_sweep(root, "again", {"branch": branch})
    with pytest.raises(RunError, match="has learned 'VizWiz' before, as task 1"):
        task_work(again, again.run, TASKS[1])


def test_a_sweep_resumes_behind_the_winners_that_are_committed(
    tmp_path: Path, swept: Swept
) -> None:
    """Killed before it committed the second task's: its probes and trials are there."""
    config, said = swept
    moved = replace(config, run=replace(config.run, runs=str(tmp_path)))
    shutil.copytree(config.run.folder, moved.run.folder)
    (moved.run.folder / "store" / "001.json").unlink()
    file = moved.run.folder / "sweep.json"
    file.write_text(json.dumps(said | {"tasks": said["tasks"][:1]}))
    lines: list[str] = []
    sweep(moved, lines.append)
    assert [line for line in lines if line.startswith("task ")] == ["task 2/2 VizWiz"]
    assert decisions(json.loads(file.read_text())) == decisions(said)
    assert weights(moved.store) == weights(config.store)


@pytest.mark.parametrize("other", ["base", "settings"])
def test_a_store_of_another_model_is_refused(tmp_path: Path, swept: Swept, other: str) -> None:
    run = swept[0].run
    header = Store.open(run.folder / "store").header
    base, settings = header.base, dict(header.settings)
    if other == "base":
        base = replace(base, digest="0" * 64)
    else:
        settings["top_k"] = 7
    Store.create(tmp_path / "log", base=base, settings=settings, config={})
    cause = "made for base" if other == "base" else "top_k: 7 -> 2"
    with pytest.raises(StoreError, match=cause):
        open_store(run, str(tmp_path / "log"), start=False)


def test_what_a_candidate_builds_on_is_kept_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own log has no task that it could build on; the store that takes it has."""
    method = make_method()
    first, _ = learn(method, "one")
    made = replace(learn(method, "two")[0], builds_on="one")
    monkeypatch.setattr(worker, "told", lambda primitive, *_: primitive)
    bench = object.__new__(worker.Bench)
    bench.method, bench.config = method, small_config(tmp_path, "kept")
    bench.session, bench.task = SimpleNamespace(collator=None), SimpleNamespace(train=())
    bench.keep(tmp_path, made, {"seconds": 1.0})
    assert worker.read_kept(tmp_path).builds_on == "one"
    (store := worker.start_store(tmp_path / "store", method, bench.config)).append(first)
    assert store.append(worker.read_kept(tmp_path)).builds_on == "one"


def test_a_trial_that_failed_by_itself_is_not_tried_again(tmp_path: Path) -> None:
    run = small_sweep(tmp_path, "tried").run
    with pytest.raises(ConnectionError), keeping_cause(tmp_path, run):
        raise ConnectionError("the machine is gone")
    error = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError), keeping_cause(tmp_path, run):
        raise error
    cause = r"CUDA out of memory.\n  lower training.micro_batch"
    with pytest.raises(RunError, match=cause), keeping_cause(tmp_path, run):
        pytest.fail("it is tried again")


def test_a_budget_below_the_smallest_candidate_is_refused() -> None:
    found = Probed(None, older=(0, 0), widths=(100, 100), hidden=16, beside=(), locator=500)
    run = small_sweep(Path(), "poor").run
    every = [candidate(p, run, found) for p in points(replace(SEARCH, rank=(4, 8)), 8)]
    least = 4 * 200 + 2 * 16 + 500
    require_affordable(every, least, "ScienceQA")
    require_affordable(every, None, "ScienceQA")
    with pytest.raises(
        RunError, match=r"'ScienceQA' may add 1,331 .* adds 1,332; raise the budget"
    ):
        require_affordable(every, least - 1, "ScienceQA")


def test_optuna_and_asha_find_winners_too(root: Path, swept: Swept) -> None:
    axes = {"alpha": (0.0,), "per_layer": (1, 2), "rank": (4, 8)}
    search = axes | {"by": "optuna", "trials": 3, "batch": 3, "scheduler": "asha"}
    changes = {"search": search, "data": {"tasks": TASKS[:1]}}
    config, said = swept_as(root, "optuna", changes)
    (task,) = said["tasks"]
    assert len(task["points"]) == 3
    assert 1 < task["trials"] <= 3
    assert task["winner"] in task["front"]
    assert all((r["accuracy"] is None) == r["stopped"] for r in task["results"])
    Store.open(config.run.folder / "store").verify()


def test_proposals_by_optuna_are_refused_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "optuna" else name)
    config = small_sweep(tmp_path, "alone")
    with pytest.raises(RunError, match=r"`pip install 'cmoe\[sweep\]'`"):
        sweep(replace(config, search=replace(config.search, by="optuna")))
    assert not config.run.folder.exists()


@pytest.mark.parametrize(
    ("part", "changes", "cause"),
    [
        ("data", {"selection": 0.0}, "candidates are judged on it"),
        ("data", {"evaluate_on": "selection"}, "winners are judged on the test"),
    ],
)
def test_runs_that_cannot_be_swept_are_refused(
    root: Path, part: str, changes: dict[str, Any], cause: str
) -> None:
    config = small_sweep(root, "never")
    run = replace(config.run, **{part: replace(getattr(config.run, part), **changes)})
    with pytest.raises(ValueError, match=cause):
        replace(config, run=run)
    with pytest.raises(ValueError, match="give both, or neither"):
        BranchConfig(task="GQA")
    with pytest.raises(ValueError, match=r"task is 'GQA'; data.tasks has"):
        replace(config, branch=BranchConfig("GQA", "somewhere"))
    with pytest.raises(ValueError, match="on a disk that its nodes share"):
        replace(config, run=replace(config.run, runs="s3://bucket/runs"))
    with pytest.raises(ValueError, match="only cmoe"):
        replace(config, run=replace(config.run, method="lora"))
