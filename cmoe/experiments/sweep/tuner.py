"""A sweep's processes on Ray: its store's maker, probe runs, and trials under Ray Tune."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from cmoe.common.errors import RunError
from cmoe.config.tree import RunConfig
from cmoe.experiments.sweep.settings import SearchConfig
from cmoe.experiments.sweep.space import Candidate, Point, Result
from cmoe.experiments.sweep.worker import RESULT, Bench, device_here, probe, read_result, train
from cmoe.folder import differences
from cmoe.methods.method import seed_of
from cmoe.run.stream import load, make_method, start_store
from cmoe.run.worker import Checkpoints
from cmoe.run.worker_failures import Verdict, described, verdict
from cmoe.run.worker_group import session
from cmoe.store.log import HEADER, Store, StoreError

if TYPE_CHECKING:
    from ray.tune import ResultGrid

LOSS = "selection_loss"
FAILED = "failed.txt"  # in the folder of a probe run or a trial: why, until it is tried anew


@contextmanager
def cluster(run: RunConfig) -> Iterator[None]:
    """Ray for as long as the body runs; what the body started there ends with it."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's own lines: one a trial, no tables
    # Ctrl-C ends the sweep. Tune's own handler would end the trials and go on as if all was done.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Without a dashboard finished trials keep their placement groups.
    with session(run, dashboard=True):
        yield


@dataclass(frozen=True)
class Work:
    """The sweep of one task.

    Attributes:
        run: The run, with the cluster.
        search: What is searched.
        store: The log; its first `index` primitives are what every trial starts from.
        index: The task's place in the log.
        task: Its name.
        folder: Where probe run and candidates keep what they make.
    """

    run: RunConfig
    search: SearchConfig
    store: str
    index: int
    task: str
    folder: Path


def require_store(run: RunConfig, store: str, *, start: bool) -> None:
    """Refuse a log of another base, before anything is trained for it.

    Args:
        run: Names the base.
        store: The log.
        start: Make it where there is none.

    Raises:
        StoreError: There is none, it is damaged, or another base's, or of other settings.
    """
    import ray

    try:
        ray.get(ray.remote(max_retries=3)(open_store).remote(run, store, start))
    except StoreError as error:  # with Ray's own text around it
        raise StoreError(str(getattr(error, "cause", error))) from error


def open_store(run: RunConfig, store: str, start: bool) -> None:
    import torch

    base, _ = load(run, torch.device("cpu"))
    method = make_method(run, base)
    if start and not Path(store, HEADER).is_file():
        start_store(Path(store), method, run)
    found = Store.open(store)
    found.require_base(method.base_digest)
    if changed := differences(found.header.settings, method.settings()):
        listed = "\n  ".join(changed)
        raise StoreError(f"{store}: its model is another; set these back:\n  {listed}")


def _resources(search: SearchConfig) -> dict[str, float]:
    """Of a trial."""
    import ray

    there = ray.cluster_resources().get("GPU", 0)
    gpus = (1.0 if there else 0.0) if search.gpus is None else search.gpus
    return {"CPU": search.cpus} | ({"GPU": gpus} if gpus else {})


def run_probe(work: Work) -> None:
    """The probe run, in a process of its own, unless it was done before."""
    folder = work.folder / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RESULT).is_file():
        return
    (folder / FAILED).unlink(missing_ok=True)
    failed = _tune(work, work.folder / "tune-probe", probing, [{}])
    if failed:
        cause = _cause(folder) or failed
        raise RunError(f"{folder}: the probe run failed; the same command tries again:\n  {cause}")


def run_trials(
    work: Work, candidates: Sequence[Candidate], show: Callable[[str], None]
) -> list[Result]:
    """Train candidates, as many at a time as the cluster takes; those with a result are read."""
    if not candidates:
        return []
    folder = work.folder
    for one in candidates:
        (folder / one.name).mkdir(exist_ok=True)
        (folder / one.name / FAILED).unlink(missing_ok=True)
    if any(not (folder / one.name / RESULT).is_file() for one in candidates):
        space = [{"name": c.name, "point": asdict(c.point)} for c in candidates]
        batch = "+".join(sorted(c.name for c in candidates))
        failed = _tune(work, folder / f"tune-{seed_of(batch):x}", training, space)
        if failed:
            causes = {one.name: _cause(folder / one.name) for one in candidates}
            told = "\n  ".join(f"{name}: {cause}" for name, cause in causes.items() if cause)
            raise RunError(
                f"{folder}: trials failed for good; the same command goes on:\n  {told or failed}"
            )
    ends_early = work.search.scheduler == "asha"
    results = [_result(folder / one.name, one, ends_early) for one in candidates]
    for result in results:
        accuracy = "stopped" if result.accuracy is None else f"{result.accuracy:.1f}%"
        show(f"  {result.name}: {accuracy}, {result.parameters:,} added, {result.seconds:.0f} s")
    return results


def _result(folder: Path, one: Candidate, ends_early: bool) -> Result:
    if ends_early and not (folder / RESULT).is_file():  # the scheduler ended it
        return Result(one.name, None, 0, one.parameters, 0.0, stopped=True)
    names = Result.__dataclass_fields__
    found = read_result(folder, *names)
    return Result(**{name: found[name] for name in names})


def _tune(
    work: Work,
    folder: Path,
    program: Callable[..., None],
    space: Sequence[Mapping[str, Any]],
) -> str:
    """Run a program once for every element of a space; why some didn't come to their end."""
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    trainable = tune.with_resources(
        tune.with_parameters(program, work=work), _resources(work.search)
    )
    if tune.Tuner.can_restore(str(folder)):
        tuner = tune.Tuner.restore(
            str(folder), trainable=trainable, resume_unfinished=True, restart_errored=True
        )
    else:
        scheduler = FIFOScheduler()
        if program is training and work.search.scheduler == "asha":
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
                failure_config=tune.FailureConfig(max_failures=work.run.cluster.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                verbose=0,
            ),
        )
    found: ResultGrid = tuner.fit()
    return "; ".join(str(error).strip().splitlines()[-1] for error in found.errors)


def probing(_: Mapping[str, Any], work: Work) -> None:
    """What the probe run's process does, unless it was done before."""
    if (work.folder / "probe" / RESULT).is_file():
        return
    with keeping_cause(work.folder / "probe", work.run):
        bench = Bench(work.run, work.store, work.index, work.task, device_here())
        probe(bench, work.folder / "probe", TuneLink())


def training(settings: Mapping[str, Any], work: Work) -> None:
    """What a trial's process does, unless it was done before."""
    link, trial = TuneLink(), settings["trial"]
    if (work.folder / trial["name"] / RESULT).is_file():
        return
    run = Point(**trial["point"]).applied(work.run)
    rung = link.measured if work.search.scheduler == "asha" else None
    with keeping_cause(work.folder / trial["name"], run):
        bench = Bench(run, work.store, work.index, work.task, device_here())
        train(bench, work.folder / "probe", work.folder / trial["name"], link, rung)


@contextmanager
def keeping_cause(folder: Path, run: RunConfig) -> Iterator[None]:
    """Keep why the body failed, where trying again would end the same.

    Ray Tune tries again, whatever it was; what was told before fails at once.

    Raises:
        RunError: It was told.
    """
    if cause := _cause(folder):
        raise RunError(cause)
    try:
        yield
    except Exception as error:
        if verdict(error, alone=True) is not Verdict.LOST:
            (folder / FAILED).write_text(described(error, run), encoding="utf-8")
        raise


def _cause(folder: Path) -> str:
    """Why what a folder is for failed for good, if it did."""
    file = folder / FAILED
    return file.read_text(encoding="utf-8") if file.is_file() else ""


class TuneLink(Checkpoints):
    """A trial's link to Ray Tune: checkpoints, with the loss that a scheduler compares."""

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}

    def emit(self, event: Mapping[str, Any]) -> None:
        """Progress within a trial isn't shown."""

    def reached(self, place: Mapping[str, Any]) -> None:
        """Nor where it is."""

    def measured(self, loss: float) -> None:
        """The loss that goes with the next checkpoint."""
        self._metrics = {LOSS: loss}

    def save(self, folder: Path, *, wait: bool) -> None:
        from ray.tune import Checkpoint, report

        report(self._metrics, checkpoint=Checkpoint.from_directory(folder))
        rmtree(folder)

    def leaving(self) -> bool:
        return False  # Ray Tune isn't told

    def _latest(self) -> Any:
        from ray.tune import get_checkpoint

        return get_checkpoint()
