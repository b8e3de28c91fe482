"""A sweep on Ray: for every task probe once, try candidates, commit the winner, go on.

<run>/store/                          the winners' log, as a stream job's
<run>/sweep/<task>/probe/             what all candidates of the task share
<run>/sweep/<task>/<candidate>/       its primitive and its result
<run>/sweep/<task>/tune/              Ray Tune's own
<run>/sweep.json                      tasks so far: candidates, results, front, winner

Results are kept by candidate, so that one is trained once, whichever point came to it, and a sweep
that was killed goes on: with the winners in the store, the results in their folders, and the trials
under way by `Tuner.restore`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmoe.config import RunConfig
from cmoe.data.coin import ensure_data
from cmoe.evaluation.results import write_json
from cmoe.evaluation.run import STORE
from cmoe.methods.method import seed_of
from cmoe.store import HEADER, Store
from cmoe.training.launch import RunError, check_model, claim_folder, connect, require_same, rooted
from cmoe.tuning.space import (
    BudgetConfig,
    Candidate,
    Point,
    Probed,
    Result,
    SearchConfig,
    candidate,
    distinct,
    drawn,
    front,
    points,
    winner,
)
from cmoe.tuning.trial import PRIMITIVE, RESULT, probe, read_probed, train

if TYPE_CHECKING:
    from ray.tune import ResultGrid

SWEEP, FOLDER = "sweep.json", "sweep"
LOSS = "selection_loss"
AXES = tuple(Point.__dataclass_fields__)


@dataclass(frozen=True)
class SweepConfig:
    """A sweep: the run that its winners make, what is searched, and what it may cost.

    Attributes:
        run: The stream. `data.selection` is what candidates are judged on.
        search: What is tried for every task.
        budget: What a task may add.
    """

    run: RunConfig
    search: SearchConfig
    budget: BudgetConfig

    def __post_init__(self) -> None:
        data = self.run.data
        if not data.selection:
            raise ValueError("data.selection is 0; candidates are judged on it: try 0.1")
        if data.evaluate_on != "test":
            raise ValueError(
                "data.evaluate_on is selection; a sweep chooses on the selection split anyway, and "
                "its winners are judged on the test"
            )
        if self.run.method != "cmoe":
            raise ValueError(f"method is {self.run.method!r}; only cmoe has something to search")
        self.run.training.accumulation(1)

    def as_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(
            json.dumps({"search": asdict(self.search), "budget": asdict(self.budget)})
        )
        return plain


def sweep(config: SweepConfig, show: Callable[[str], None] = print) -> dict[str, Any]:
    """Sweep all tasks of the stream, from wherever the run's folder stands.

    Args:
        config: What to do.
        show: Receives lines for the screen.

    Returns:
        The contents of `sweep.json`.

    Raises:
        RunError: Another sweep has this name, the budget is below the smallest candidate, or a
            trial failed for good.
        DataError: The data is missing or wrong.
        StoreError: The store is another base's, or damaged.
    """
    run = config.run
    require_same(run)
    said = _claim(run.folder / SWEEP, config)
    if len(said["tasks"]) == len(run.data.tasks):
        show(f"{run.folder}: this sweep is finished; another name starts another sweep")
        return said
    check_model(run)
    ensure_data(run.data)
    claim_folder(run)
    write_json(run.folder / SWEEP, said)
    run = rooted(run)
    with _cluster(run):
        _start(run)
        for index, task in enumerate(run.data.tasks):
            if len(said["tasks"]) > index:
                continue
            show(f"task {index + 1}/{len(run.data.tasks)} {task}")
            said["tasks"].append(_task(config, run, index, said["tasks"], show))
            write_json(run.folder / SWEEP, said)
    return said


def _claim(file: Path, config: SweepConfig) -> dict[str, Any]:
    """What a sweep of this name has found so far.

    Raises:
        RunError: It searched something else.
    """
    if not file.is_file():
        return {**config.as_dict(), "tasks": []}
    said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for part, values in config.as_dict().items():
        for name, value in values.items():
            if said[part].get(name) != value:
                before = said[part].get(name)
                raise RunError(
                    f"{file}: this sweep has {part}.{name} {before!r}, not {value!r}; set it back, "
                    "or give this sweep another name"
                )
    return said


def _start(run: RunConfig) -> None:
    """The winners' store, where there is none yet."""
    if (run.folder / STORE / HEADER).is_file():
        return
    import ray

    ray.get(ray.remote(max_retries=3)(_make_store).remote(run))


def _make_store(run: RunConfig) -> None:
    from cmoe.loading import create_store
    from cmoe.modeling.base import load_base
    from cmoe.training.stream import make_method

    base, _ = load_base(run.model.path, revision=run.model.revision)
    method = make_method(run, base)
    name, revision = run.model.name, run.model.revision or "default"
    create_store(run.folder / STORE, method, name=name, revision=revision, config=run.as_dict())


def _task(
    config: SweepConfig,
    run: RunConfig,
    index: int,
    before: Sequence[Mapping[str, Any]],
    show: Callable[[str], None],
) -> dict[str, Any]:
    """Probe a task, try its candidates, and commit the winner."""
    store, name = Store.open(run.folder / STORE), run.data.tasks[index]
    folder = run.folder / FOLDER / f"{index:03d}-{name}"
    _probe(config, run, index, folder)
    probed, _ = read_probed(folder / "probe")
    shared = json.loads((folder / "probe" / RESULT).read_text(encoding="utf-8"))
    spent = sum(task["parameters"] for task in before)
    limit = config.budget.limit(spent)
    tried: list[Point] = []
    results: dict[str, Result] = {}
    every: list[Candidate] = []
    require_affordable(
        [candidate(p, run, probed) for p in points(config.search, run.experts.rank)], limit, name
    )
    for batch in _batches(config, run, probed, f"{run.seed}/{name}", results, tried):
        new = [c for c in distinct(batch) if c.name not in {e.name for e in every}]
        every += new
        fit = [c for c in new if limit is None or c.parameters <= limit]
        for result in _trials(config, run, index, folder, fit, show):
            results[result.name] = result
    best = winner(list(results.values()), limit, config.search.tolerance)
    if len(store) == index:
        store.append(Store.open(folder / best.name / PRIMITIVE).read(0))
    show(f"  {best.name}: {best.accuracy:.1f}%, {best.parameters:,} parameters")
    seconds = [r.seconds for r in results.values() if not r.stopped]
    return {
        "task": name,
        "winner": best.name,
        "accuracy": best.accuracy,
        "parameters": best.parameters,
        "limit": limit,
        "probe_seconds": shared["seconds"],
        "points": len(tried),
        "trials": len(results),
        "trial_seconds": sum(seconds),
        # Each point would have probed and trained by itself.
        "saved_seconds": {
            "shared probe": shared["seconds"] * max(0, len(tried) - 1),
            "same candidate": (len(tried) - len(every)) * sum(seconds) / max(1, len(seconds)),
        },
        "probing": asdict(probed)["probing"],
        "candidates": [{"name": c.name, **asdict(c), "experts": dict(c.experts)} for c in every],
        "results": [asdict(r) for r in results.values()],
        "front": [r.name for r in front(list(results.values()))],
    }


def require_affordable(every: Sequence[Candidate], limit: int | None, task: str) -> None:
    """Refuse a budget that no candidate of a task fits into, before any is trained.

    Raises:
        RunError: Names the smallest.
    """
    least = min(every, key=lambda c: c.parameters)
    if limit is not None and least.parameters > limit:
        raise RunError(
            f"task {task!r} may add {limit:,} parameters (budget), and its smallest candidate, "
            f"{least.name}, adds {least.parameters:,}; raise the budget or search smaller ranks"
        )


# Points in batches


def _batches(
    config: SweepConfig,
    run: RunConfig,
    probed: Probed,
    seed: str,
    results: Mapping[str, Result],
    tried: list[Point],
) -> Iterator[list[Candidate]]:
    """What to try next. Between two batches the results of the first are put into `results`."""
    search, rank = config.search, run.experts.rank
    if search.by != "optuna":
        tried += drawn(search, rank, seed)
        yield [candidate(p, run, probed) for p in tried]
        return
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Its generator takes 32 bits.
    sampler = optuna.samplers.TPESampler(seed=seed_of(seed) % 2**32, n_startup_trials=search.batch)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    grid = points(search, rank)
    axes = {name: sorted({getattr(p, name) for p in grid}, key=str) for name in AXES}
    while len(tried) < search.trials:
        asked = [study.ask() for _ in range(min(search.batch, search.trials - len(tried)))]
        chosen = [
            Point(**{name: t.suggest_categorical(name, axes[name]) for name in AXES}) for t in asked
        ]
        tried += chosen
        candidates = [candidate(p, run, probed) for p in chosen]
        yield candidates
        for trial, one in zip(asked, candidates, strict=True):
            result = results.get(one.name)
            if result is None or result.accuracy is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, [result.accuracy, result.parameters])


# Ray


@contextmanager
def _cluster(run: RunConfig) -> Iterator[None]:
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


def _resources(config: SweepConfig) -> dict[str, float]:
    """Of a trial."""
    import ray

    search, there = config.search, ray.cluster_resources().get("GPU", 0)
    gpus = (1.0 if there else 0.0) if search.gpus is None else search.gpus
    return {"CPU": search.cpus} | ({"GPU": gpus} if gpus else {})


def _probe(config: SweepConfig, run: RunConfig, index: int, folder: Path) -> None:
    """The probe run, in a process of its own, unless it was done before."""
    (folder / "probe").mkdir(parents=True, exist_ok=True)
    if (folder / "probe" / RESULT).is_file():
        return
    store = run.folder / STORE
    work = {"run": run, "prefix": store, "index": index, "folder": folder / "probe"}
    failed = _tune(config, folder / "tune-probe", probing, work, [{}])
    if failed:
        raise RunError(f"{folder}: the probe run failed; the same command tries again:\n  {failed}")


def _trials(
    config: SweepConfig,
    run: RunConfig,
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
            "rungs": config.search.scheduler == "asha",
        }
        space = [{"name": c.name, "point": asdict(c.point)} for c in candidates]
        batch = "+".join(sorted(c.name for c in candidates))
        failed = _tune(config, folder / f"tune-{seed_of(batch):x}", training, work, space)
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
    config: SweepConfig,
    folder: Path,
    program: Callable[..., None],
    work: Mapping[str, Any],
    space: Sequence[Mapping[str, Any]],
) -> str:
    """Run a program once for every element of a space; why some didn't come to their end."""
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    trainable = tune.with_resources(
        tune.with_parameters(program, work=dict(work)), _resources(config)
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
                failure_config=tune.FailureConfig(max_failures=config.run.cluster.max_failures),
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

        checkpoint = get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)
