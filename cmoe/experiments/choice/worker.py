"""What the processes of the study do: learn the tasks before, probe a task, learn it in one set."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cmoe.common.run_files import read_object, write_json
from cmoe.config.tree import RunConfig
from cmoe.experiments.choice.sets import LayerSet
from cmoe.experiments.sweep.worker import RESULT, Bench, device_here, probe, read_probed
from cmoe.methods.measure import greedy_order
from cmoe.methods.method import seed_of
from cmoe.methods.probe import split
from cmoe.store.log import Store

GREEDY = "greedy.json"


def learn_next(run: RunConfig, store: str, index: int) -> None:
    """Learn a task of the stream behind the log's, and append it, unless it is there."""
    if len(Store.open(store)) > index:
        return
    task = run.data.tasks[index]
    bench = Bench(run, store, index, task, device_here())
    primitive = bench.method.learn(task, bench.task.train, bench.trainer(Unkept()))
    Store.open(store).append(primitive)


def probe_task(run: RunConfig, store: str, task: str, count: int, folder: Path) -> None:
    """Probe a task behind those before it, and find the `count` layers that lower its loss most."""
    if (folder / GREEDY).is_file():
        return
    index = run.data.tasks.index(task)
    bench = Bench(run, store, index, task, device_here())
    if not (folder / RESULT).is_file():
        probe(bench, folder, Unkept())
    _, probes = read_probed(folder)
    model, settings = bench.method.module, run.probe
    model.grow(
        task,
        dict.fromkeys(range(len(model.ffns)), settings.experts),
        rank=probes.rank,
        lora_alpha=probes.lora_alpha,
        seed=0,
        init={**probes.experts, **probes.routers},
        builds_on=probes.decision["foundation"]["builds_on"],
        compete=settings.rule == "relative",
    )
    _, measuring = split(bench.task.train, settings, seed_of(run.seed, task, "probe split"))
    few = measuring[: settings.gain_samples]
    order = greedy_order(model, task, few, count, bench.trainer(Unkept()))
    write_json(folder / GREEDY, {"layers": order})


def read_greedy(folder: Path) -> list[int]:
    """The layers that `probe_task` found."""
    remedy = f"remove {folder}, and the same command makes it again"
    layers: list[int] = read_object(folder / GREEDY, remedy, "layers")["layers"]
    return layers


def learn_set(
    run: RunConfig, store: str, task: str, probed: Path, chosen: LayerSet, repeat: int, file: Path
) -> None:
    """Learn a task in one set of layers, and write what it then loses on held-out samples.

    Every set starts from fresh experts: what the probes learned of it must not count.

    Args:
        run: The study's.
        store: The log with the tasks before.
        task: To learn.
        probed: Folder of its probes.
        chosen: Where it grows.
        repeat: Number of this training of the set.
        file: Where the result goes.
    """
    if file.is_file():
        return
    start = time.monotonic()
    experts = replace(
        run.experts,
        rank=chosen.rank,
        lora_alpha=run.experts.lora_alpha * chosen.rank / run.experts.rank,
        per_layer=1,
    )
    config = replace(run, experts=experts, probe=replace(run.probe, init="fresh"))
    seed = seed_of(run.seed, "choice", repeat) if repeat else run.seed
    index = run.data.tasks.index(task)
    bench = Bench(config, store, index, task, device_here(), seed)
    _, probes = read_probed(probed)
    where = dict.fromkeys(chosen.layers, 1)
    primitive = bench.method.learn(
        task, bench.task.train, bench.trainer(Unkept()), probes, experts=where
    )
    counts = primitive.parameter_counts()
    result = {
        "loss": bench.loss(),
        "samples": len(bench.task.test),
        "parameters": counts["experts"] + counts["routers"],
        "seconds": time.monotonic() - start,
    }
    write_json(file, {"set": asdict(chosen), "repeat": repeat, **result})


class Unkept:
    """A link that shows nothing and keeps no checkpoint: what is cut off begins again."""

    def emit(self, event: Mapping[str, Any]) -> None:
        """Progress isn't shown."""

    def reached(self, place: Mapping[str, Any]) -> None:
        """Nor where it is."""

    def save(self, folder: Path, *, wait: bool) -> None:
        shutil.rmtree(folder)

    def leaving(self) -> bool:
        return False

    @contextmanager
    def saved(self, needed: Callable[[str], bool] | None = None) -> Iterator[Path | None]:
        yield None

    def read_saved(self, name: str) -> str | None:
        return None
