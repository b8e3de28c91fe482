"""Kills workers, drivers, nodes and Ray's own actors at random moments: `make chaos`.

A short stream runs on a cluster of two nodes, both of this machine. A killed driver, and one that
lost Ray's controller, is started again by the same command. A killed node is replaced by another,
one whose raylet was killed as well. A run that ends before all kills are done is followed by
another one. Each has to end in the results and the weights of one that nothing
happened to. What is killed when comes from the seed; where the run is then, from the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import psutil
import yaml
from ray.cluster_utils import Cluster
from support.forking import forking
from support.jobs import JOB, finish, same_run, start, undisturbed
from support.marks import starts
from support.workers import TASKS, small_config

from cmoe.config.tree import RunConfig

KINDS = ("worker", "driver", "node", "raylet", "controller", "board")
ACTORS = {"worker": "RayTrainWorker", "controller": "TrainController", "board": "ray::Board"}
AT_WORK = 0.7  # of the kills, at least: once the group is back at work
PAUSE_S = 12.0  # at most until a kill, from the last one or from when the group is at work


@starts("ray")
def chaos(root: Path, kills: int, seed: int, show: Callable[[str], object] = print) -> int:
    """Kill so often, and check every run that it takes.

    Args:
        root: Folder of all runs.
        kills: Of a kind drawn each time, every kind as often as the others.
        seed: Of kinds, victims and moments.
        show: Receives what happens.

    Returns:
        How many runs it took.
    """
    random = Random(seed)
    reference = undisturbed(_config(root, "whole"))
    kinds = [kind for _ in range(kills) for kind in random.sample(KINDS, len(KINDS))][:kills]
    runs = 0
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = nodes.add_node(num_cpus=1)
        while kinds:
            runs += 1
            config = _config(root, f"chaos{runs}", address=nodes.address)
            file = root / f"{config.name}.yaml"
            file.write_text(yaml.safe_dump(config.as_dict()))
            job = start(JOB, "--config", file)
            while kinds:
                log = config.folder / "run.log"
                if random.random() < AT_WORK:
                    _until_at_work(log, job)
                _rest(random.uniform(0, PAUSE_S), job)
                if job.poll() is not None:
                    break
                kind = kinds.pop(0)
                where = _last(log) or "its beginning"
                show(f"run {runs}: {kind} killed at: {where}")
                if kind in ACTORS:
                    killed = _kill_actor(random, ACTORS[kind])
                    if kind == "controller" and killed:
                        out = finish(job)
                        told = "Ray itself was lost: the driver's TrainController died"
                        assert told in out or job.returncode == 0, out
                        job = start(JOB, "--config", file)
                elif kind == "driver":
                    job.kill()
                    job.wait()
                    job = start(JOB, "--config", file)
                else:
                    if kind == "raylet":
                        node.kill_raylet(check_alive=False)
                    nodes.remove_node(node, allow_graceful=False)
                    node = nodes.add_node(num_cpus=1)
            out = finish(job, minutes=10)
            assert job.returncode == 0, out
            same_run(config.folder, reference)
            show(f"run {runs}: ended as one that nothing happened to")
    finally:
        nodes.shutdown()
    return runs


def _config(root: Path, name: str, **cluster: Any) -> RunConfig:
    config = small_config(root, name)
    return replace(
        config,
        data=replace(config.data, tasks=TASKS[:2]),
        training=replace(config.training, steps=40, log_every=2),
        cluster=replace(config.cluster, max_failures=1000, **cluster),
    )


def _last(log: Path) -> str:
    """What a run showed last."""
    return log.read_text().splitlines()[-1][20:] if log.is_file() else ""


def _until_at_work(log: Path, job: Any) -> None:
    """Wait until something is shown but that the group starts, behind what was there."""
    before = len(log.read_text()) if log.is_file() else 0
    while job.poll() is None:
        if log.is_file() and re.search(r" \d+/\d+ ", log.read_text()[before:]):
            return
        time.sleep(0.1)


def _rest(seconds: float, job: Any) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and job.poll() is None:
        time.sleep(0.05)


def _kill_actor(random: Random, name: str) -> bool:
    """SIGKILL one of Ray's actors; whether there is one at the moment."""
    found = [
        child
        for child in psutil.Process().children(recursive=True)
        if name in child.name() or name in " ".join(child.cmdline())
    ]
    if found:
        random.choice(found).kill()
    return bool(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, forking() as environment:
        os.environ |= environment
        runs = chaos(Path(root), asked.kills, asked.seed, lambda text: print(text, flush=True))
    print(f"{asked.kills} kills in {runs} runs; all ended as one that nothing happened to")
    return 0


if __name__ == "__main__":
    sys.exit(main())
