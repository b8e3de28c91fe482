"""Worker groups without a cluster: processes of this machine that share a stream."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.devices import BACKEND, DEVICE
from support.marks import starts
from support.ports import free_port

from cmoe.common.group import Group
from cmoe.config.tree import RunConfig
from cmoe.data.settings import DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.methods.settings import ExpertsConfig, ProbeConfig
from cmoe.modeling.settings import LocatorConfig
from cmoe.training.settings import TrainingConfig

TASKS = ("ScienceQA", "VizWiz", "Grounding")


def small_config(folder: Path, name: str, **changes: Any) -> RunConfig:
    """A stream of three tasks that one core learns in seconds."""
    parts: dict[str, Any] = {
        "data": DataConfig(
            root=str(folder / "data"),
            tasks=TASKS,
            generate=True,
            train_samples=96,
            test_samples=21,
        ),
        "experts": ExpertsConfig(rank=8, usage_samples=32),
        "probe": ProbeConfig(steps=4, fraction=0.25, gain_samples=16),
        "locator": LocatorConfig(layer=1, pooling="mean_text", steps=100),
        "training": TrainingConfig(
            steps=12, global_batch=16, micro_batch=8, learning_rate=6e-3, checkpoint_every=5
        ),
        "evaluation": EvaluationConfig(batch_size=8, flush_every=2),
    }
    return RunConfig(name, runs=str(folder / "runs"), **(parts | changes))


# Processes come of one that has imported all of it: each would take seconds for that. What has been
# on a GPU can't be forked.
METHOD = "forkserver" if DEVICE.type == "cpu" else "spawn"
mp.get_context("forkserver").set_forkserver_preload(["cmoe.run.stream", "deepspeed", "peft"])


@starts("group")
def run_group(workers: int, work: Callable[..., None], *args: Any) -> None:
    """`work(group, *args)` in as many processes, on the tests' device. An error of one ends all."""
    given = dict(os.environ) | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(workers),
    }
    mp.start_processes(_member, (workers, given, work, args), workers, start_method=METHOD)


def _member(
    rank: int, workers: int, given: Mapping[str, str], work: Callable[..., None], args: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(given)
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
    device = DEVICE
    if device.type == "cuda":
        device = torch.device("cuda", (device.index or 0) + rank)
        torch.cuda.set_device(device)
    dist.init_process_group(BACKEND, rank=rank, world_size=workers)
    work(Group(rank, workers, device), *args)
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is done: gloo's threads may abort a process that ends while others still tear down.
    os._exit(0)


class FolderLink:
    """A link that keeps the latest checkpoint in a folder, and its events."""

    def __init__(self, group: Group, folder: Path) -> None:
        self.group, self.folder = group, folder
        self.events: list[Mapping[str, Any]] = []

    def emit(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def reached(self, place: Mapping[str, Any]) -> None:
        pass

    def leaving(self) -> bool:
        return False

    def save(self, folder: Path, *, wait: bool) -> None:
        beside = self.folder.with_suffix(".new")
        if self.group.first:
            shutil.rmtree(beside, ignore_errors=True)
        self.group.gather(None)
        shutil.copytree(folder, beside, dirs_exist_ok=True)
        self.group.gather(None)
        if self.group.first:
            shutil.rmtree(self.folder, ignore_errors=True)
            beside.rename(self.folder)
        self.group.gather(None)
        shutil.rmtree(folder)

    @contextmanager
    def saved(self, needed: Callable[[str], bool] | None = None) -> Iterator[Path | None]:
        """As of another storage: what isn't needed is left out."""
        if not self.folder.is_dir():
            yield None
            return

        def left_out(_: str, names: list[str]) -> list[str]:
            return [name for name in names if needed is not None and not needed(name)]

        with tempfile.TemporaryDirectory() as beside:
            yield shutil.copytree(self.folder, Path(beside) / "checkpoint", ignore=left_out)

    def read_saved(self, name: str) -> str | None:
        file = self.folder / name
        return file.read_text() if file.is_file() else None


class Stops(FolderLink):
    """The group is lost right behind the second task's first checkpoint."""

    def save(self, folder: Path, *, wait: bool) -> None:
        super().save(folder, wait=wait)
        progress = json.loads(self.read_saved("progress.json") or "{}")
        if progress["index"] == 1 and progress["phase"] == "train":
            raise KeyError("stopped")
