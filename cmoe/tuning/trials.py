"""A sweep's processes on Ray: its store's maker, probe runs, and trials under Ray Tune."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmoe.config import RunConfig
from cmoe.evaluation.run import STORE
from cmoe.methods.method import seed_of
from cmoe.store import HEADER
from cmoe.training.launch import RunError, connect, opened
from cmoe.training.stream import load, make_method, start_store
from cmoe.tuning.space import Candidate, Point, Result, SearchConfig
from cmoe.tuning.trial import RESULT, probe, train

if TYPE_CHECKING:
    from ray.tune import ResultGrid

LOSS = "selection_loss"


@contextmanager
def cluster(run: RunConfig) -> Iterator[None]:
    """Ray for as long as the body runs; what the body started there ends with it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own lines: one a trial, no tables
    # Ctrl-C ends the sweep. Tune's own handler would end the trials and go on as if all was done.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    connect(run, dashboard=True)  # without it finished trials keep their placement groups
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def require_store(run: RunConfig) -> None:
    """Start the winners' store, where there is none yet."""
    if (run.folder / STORE / HEADER).is_file():
        return
    import ray

    ray.get(ray.remote(max_retries=3)(_make_store).remote(run))


def _make_store(run: RunConfig) -> None:
    import torch

    base, _ = load(run, torch.device("cpu"))
    start_store(run.folder / STORE, make_method(run, base), run)


def _resources(search: SearchConfig) -> dict[str, float]:
    """Of a trial."""
    import ray

    there = ray.cluster_resources().get("GPU", 0)
    gpus = (1.0 if there else 0.0) if search.gpus is None else search.gpus
    return {"CPU": search.cpus} | ({"GPU": gpus} if gpus else {})


def run_probe(run: RunConfig, search: SearchConfig, index: int, folder: Path) -> None:
    """The probe run, in a process of its own, unless it was done before."""
    (folder / "probe").mkdir(parents=True, exist_ok=True)
    if (folder / "probe" / RESULT).is_file():
        return
    store = run.folder / STORE
    work = {"run": run, "prefix": store, "index": index, "folder": folder / "probe"}
    failed = _tune(run, search, folder / "tune-probe", probing, work, [{}])
    if failed:
        raise RunError(f"{folder}: the probe run failed; the same command tries again:\n  {failed}")


def run_trials(
    run: RunConfig,
    search: SearchConfig,
    index: int,
    folder: Path,
    candidates: Sequence[Candidate],
    show: Callable[[str], None],
) -> list[Result]:
    """Train candidates, as many at a time as the cluster takes; those with a result are read."""
    if not candidates:
        return []
    for one in candidates:
        (folder / one.name).mkdir(exist_ok=True)
    if any(not (folder / one.name / RESULT).is_file() for one in candidates):
        work = {
            "run": run,
            "prefix": run.folder / STORE,
            "index": index,
            "folder": folder,
            "rungs": search.scheduler == "asha",
        }
        space = [{"name": c.name, "point": asdict(c.point)} for c in candidates]
        batch = "+".join(sorted(c.name for c in candidates))
        failed = _tune(run, search, folder / f"tune-{seed_of(batch):x}", training, work, space)
        if failed:
            raise RunError(
                f"{folder}: trials failed for good; the same command goes on:\n  {failed}"
            )
    results = [_result(folder / one.name, one) for one in candidates]
    for result in results:
        accuracy = "stopped" if result.accuracy is None else f"{result.accuracy:.1f}%"
        show(f"  {result.name}: {accuracy}, {result.parameters:,} added, {result.seconds:.0f} s")
    return results


def _result(folder: Path, one: Candidate) -> Result:
    file = folder / RESULT
    if not file.is_file():  # the scheduler ended it
        return Result(one.name, None, 0, one.parameters, 0.0, stopped=True)
    return Result(**json.loads(file.read_text(encoding="utf-8")))


def _tune(
    run: RunConfig,
    search: SearchConfig,
    folder: Path,
    program: Callable[..., None],
    work: Mapping[str, Any],
    space: Sequence[Mapping[str, Any]],
) -> str:
    """Run a program once for every element of a space; why some didn't come to their end."""
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    trainable = tune.with_resources(
        tune.with_parameters(program, work=dict(work)), _resources(search)
    )
    if tune.Tuner.can_restore(str(folder)):
        tuner = tune.Tuner.restore(
            str(folder), trainable=trainable, resume_unfinished=True, restart_errored=True
        )
    else:
        scheduler = FIFOScheduler()
        if work.get("rungs"):
            # No trial is stopped for having come to the last rung: its judging still follows.
            scheduler = AsyncHyperBandScheduler(
                metric=LOSS, mode="min", grace_period=1, reduction_factor=2, max_t=10**6
            )
        tuner = tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search(list(space))},
            tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                failure_config=tune.FailureConfig(max_failures=run.cluster.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                verbose=0,
            ),
        )
    found: ResultGrid = tuner.fit()
    return "; ".join(str(error).strip().splitlines()[-1] for error in found.errors)


def probing(_: Mapping[str, Any], work: Mapping[str, Any]) -> None:
    """What the probe run's process does."""
    probe(work["run"], work["prefix"], work["index"], work["folder"], TuneLink(), _device())


def training(settings: Mapping[str, Any], work: Mapping[str, Any]) -> None:
    """What a trial's process does."""
    link, trial = TuneLink(), settings["trial"]
    folder, name = work["folder"], trial["name"]
    train(
        work["run"],
        Point(**trial["point"]),
        work["prefix"],
        work["index"],
        folder / "probe",
        folder / name,
        link,
        _device(),
        link.measured if work["rungs"] else None,
    )


def _device() -> str:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return "cuda" if torch.cuda.is_available() else "cpu"


class TuneLink:
    """A trial's link to Ray Tune: checkpoints, with the loss that a scheduler compares."""

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}

    def emit(self, event: Mapping[str, Any]) -> None:
        """Progress within a trial isn't shown."""

    def measured(self, loss: float) -> None:
        """The loss that goes with the next checkpoint."""
        self._metrics = {LOSS: loss}

    def save(self, folder: Path) -> None:
        from ray.tune import Checkpoint, report

        report(self._metrics, checkpoint=Checkpoint.from_directory(folder))

    @contextmanager
    def saved(self) -> Iterator[Path | None]:
        from ray.tune import get_checkpoint

        with opened(get_checkpoint()) as folder:
            yield folder
