"""Runs on clusters of several nodes, all of this machine, whose nodes come and go."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster
from support.jobs import JOB, KILLING, finish, same_run, start, undisturbed, until
from support.workers import TASKS, small_config

from cmoe.config.tree import RunConfig
from cmoe.store.log import Store

QUICK = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


def long_config(root: Path, name: str, every: int = 10, **cluster: Any) -> RunConfig:
    """Two tasks, the second one's training long enough for nodes to come and go."""
    config = small_config(root, name)
    return replace(
        config,
        data=replace(config.data, tasks=TASKS[:2]),
        training=replace(config.training, steps=60, checkpoint_every=every, log_every=1),
        cluster=replace(config.cluster, **cluster),
    )


@pytest.fixture(scope="module")
def reference(root: Path) -> Path:
    return undisturbed(long_config(root, "whole"))


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A head that has one worker's core."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield nodes
    finally:
        nodes.shutdown()


def job_on(
    nodes: Cluster, root: Path, config: RunConfig, *program: object
) -> tuple[subprocess.Popen[str], Path]:
    """A job on a cluster, and where it logs."""
    config = replace(config, cluster=replace(config.cluster, address=nodes.address))
    file = root / f"{config.name}.yaml"
    file.write_text(yaml.safe_dump(config.as_dict()))
    return start(
        *(program or [JOB]), "--config", file, environment=QUICK
    ), config.folder / "run.log"


def said(log: Path, pattern: str) -> bool:
    return log.is_file() and re.search(pattern, log.read_text()) is not None


def test_a_node_is_killed_while_it_trains(root: Path, reference: Path) -> None:
    with cluster() as nodes:
        node = nodes.add_node(num_cpus=1)
        job, log = job_on(nodes, root, long_config(root, "killed"), KILLING, "none")
        until(lambda: said(log, r"task 2/2 VizWiz +train +1/60") or job.poll() is not None)
        time.sleep(2)  # behind a checkpoint, or not: it is to come to the same
        nodes.remove_node(node, allow_graceful=False)
        until(lambda: said(log, "never starts") or job.poll() is not None)
        nodes.add_node(num_cpus=1)
        out = finish(job)
    assert job.returncode == 0, out
    assert "start 2 of the workers: 2 go on" in out
    text = log.read_text()
    # The loss itself, or what it did to the other worker: whichever Ray hears of first.
    lost = r"worker \d \(\S+, pid \d+\) (was lost with its machine|died|failed: .*by peer)"
    assert re.search(lost, text), text
    waits = (
        r"waiting \d+ s for 2 workers with 1 CPU each: the cluster has 1 CPU in all on 1 machine"
    )
    assert re.search(waits, text), text
    same_run(root / "runs" / "killed", reference)


def test_the_group_shrinks_on_notice_and_grows_again(root: Path, reference: Path) -> None:
    config = long_config(root, "elastic", every=1000, min_workers=1, resize_s=2.0)
    with cluster() as nodes:
        node = nodes.add_node(num_cpus=1)
        job, log = job_on(nodes, root, config)
        until(lambda: said(log, r"task 2/2 VizWiz +train +1/60") or job.poll() is not None)
        drain(nodes, node)
        until(lambda: said(log, "a machine leaves") or job.poll() is not None)
        nodes.remove_node(node, allow_graceful=False)
        until(lambda: said(log, "start 2 of the workers: 1 go") or job.poll() is not None)
        nodes.add_node(num_cpus=1)
        until(lambda: said(log, "start 3 of the workers: 2 go") or job.poll() is not None)
        out = finish(job)
    assert job.returncode == 0, out
    saved = re.search(r"leaves; step (\d+) of 60 is saved\n", out)
    assert saved, out
    behind = out[out.index("start 2 of the workers") :]
    resumed = re.search(r"VizWiz  train (\d+)/60", behind)
    assert resumed, out
    assert int(resumed[1]) == int(saved[1]) + 1, "at the very step"
    decided_alike(config.folder, reference)


def drain(nodes: Cluster, node: Any) -> None:
    """What a provider's notice is to Ray: the node goes in half a minute."""
    command = [Path(sys.executable).with_name("ray"), "drain-node", "--address", nodes.address]
    command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "spot", "--deadline-remaining-seconds", "30"]
    subprocess.run(command, check=True, capture_output=True)


def decided_alike(folder: Path, reference: Path) -> None:
    """The same experts in the same places, and losses within 1e-3."""
    mine, theirs = (Store.open(f / "store") for f in (folder, reference))
    mine.verify()
    for one, other in zip(mine.records(), theirs.records(), strict=True):
        assert one.parameters == other.parameters
        assert one.decision.get("experts") == other.decision.get("experts")
    for index in range(2):
        notes = [
            json.loads((f / "stages" / f"{index:03d}.json").read_text())
            for f in (folder, reference)
        ]
        for phase, losses in notes[1]["loss"].items():
            assert notes[0]["loss"][phase] == pytest.approx(losses, abs=1e-3), phase
