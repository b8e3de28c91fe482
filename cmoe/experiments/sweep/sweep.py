"""A sweep on Ray: for every task probe once, try candidates, commit the winner, go on.

<run>/store/                          the winners' log, as a stream job's (`--store` is another's)
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cmoe.common.errors import RunError
from cmoe.common.exclusive import require_exclusive
from cmoe.common.log_lines import say
from cmoe.common.packages import lacking
from cmoe.common.run_files import read_object, write_json
from cmoe.common.storage import filesystem, is_remote
from cmoe.config.tree import RunConfig
from cmoe.data.coin import count_rows, read_tasks
from cmoe.evaluation.data_identity import claim_data, fingerprints
from cmoe.evaluation.targets import stream_targets
from cmoe.experiments.sweep.proposals import proposals
from cmoe.experiments.sweep.settings import BranchConfig, BudgetConfig, SearchConfig
from cmoe.experiments.sweep.space import (
    Candidate,
    Point,
    Result,
    candidate,
    distinct,
    points,
    winner,
)
from cmoe.experiments.sweep.summary import task_summary
from cmoe.experiments.sweep.tuner import (
    Work,
    cluster,
    require_store,
    run_probe,
    run_trials,
)
from cmoe.experiments.sweep.worker import RESULT, read_kept, read_probed, read_result
from cmoe.folder import STORE, SWEEP, RunFolder
from cmoe.mini.tasks import ensure_data
from cmoe.run.launch import check_model, require_lasting
from cmoe.run.lease import LeaseError, held
from cmoe.run.worker_group import rooted
from cmoe.store.log import Store
from cmoe.tasks.base_rule import base_rule

FOLDER = "sweep"


@dataclass(frozen=True)
class SweepConfig:
    """A sweep: the run that its winners make, what is searched, and what it may cost.

    Attributes:
        run: The stream. `data.selection` is what candidates are judged on.
        search: What is tried for every task.
        budget: What a task may add.
        branch: The one task to sweep, and the log that it is added to; else the whole stream.
    """

    run: RunConfig
    search: SearchConfig
    budget: BudgetConfig
    branch: BranchConfig = field(default_factory=BranchConfig)

    def __post_init__(self) -> None:
        data = self.run.data
        if not data.selection:
            raise ValueError("data.selection is 0; candidates are judged on it: try 0.1")
        if data.evaluate_on != "test":
            raise ValueError(
                "data.evaluate_on is selection; a sweep chooses on the selection split anyway, and "
                "its winners are judged on the test"
            )
        if is_remote(self.run.runs):
            raise ValueError(
                f"runs is {self.run.runs!r}; a sweep's folder is on a disk that its nodes share"
            )
        if self.run.method != "cmoe":
            raise ValueError(f"method is {self.run.method!r}; only cmoe has something to search")
        if self.branch.task is not None and self.branch.task not in data.tasks:
            raise ValueError(f"task is {self.branch.task!r}; data.tasks has {list(data.tasks)}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is swept, in order."""
        return self.run.data.tasks if self.branch.task is None else (self.branch.task,)

    @property
    def store(self) -> str:
        """The log that winners are committed to, as a path from the root or a URL."""
        place = self.branch.store or str(self.run.folder / STORE)
        return place if is_remote(place) else str(Path(place).absolute())

    def as_dict(self) -> dict[str, Any]:
        parts = {part: asdict(getattr(self, part)) for part in ("search", "budget", "branch")}
        plain: dict[str, Any] = json.loads(json.dumps(parts))
        return plain


def sweep(config: SweepConfig, show: Callable[[str], None] = say) -> dict[str, Any]:
    """Sweep all tasks of the stream, from wherever the run's folder stands.

    Args:
        config: What to do.
        show: Receives lines for the screen.

    Returns:
        The contents of `sweep.json`.

    Raises:
        RunError: Another sweep has this name, another job drives it, the task was learned before,
            the budget is below the smallest candidate, or a trial failed for good.
        DataError: The data is missing, wrong, or not what the sweep began with.
        StoreError: The store is another base's, or damaged.
        StorageError: A folder can't be used.
    """
    run = config.run
    require_installed(config.search)
    require_lasting(run.runs)
    RunFolder(run.folder, run.url).require_same(run.as_dict())
    found = _found_before(run.folder / SWEEP, config)
    if len(found["tasks"]) == len(config.tasks):
        show(f"{run.folder}: this sweep is finished; another name starts another sweep")
        return found
    try:
        with held(str(run.folder), show):
            return _swept(config, found, show)
    except LeaseError as error:
        raise RunError(str(error)) from error


def _swept(
    config: SweepConfig, found: dict[str, Any], show: Callable[[str], None]
) -> dict[str, Any]:
    run = config.run
    check_model(run)
    if config.branch.store is not None:  # before hours of trials
        require_exclusive(*filesystem(config.store), config.store)
    ensure_data(run.data)
    _claim_data(config, show)
    write_json(run.folder / SWEEP, found)
    run = rooted(run)
    with cluster(run):
        require_store(run, config.store, start=config.branch.store is None)
        for number, task in enumerate(config.tasks):
            if len(found["tasks"]) > number:
                continue
            show(f"task {number + 1}/{len(config.tasks)} {task}")
            found["tasks"].append(_task(config, run, task, show))
            write_json(run.folder / SWEEP, found)
    return found


def _claim_data(config: SweepConfig, show: Callable[[str], None]) -> None:
    """Refuse rows that can't be used, and other data than the sweep began with.

    Candidates learn and are judged on training rows; the winners' stream is judged on the test's.
    """
    run = config.run
    data = replace(run.data, tasks=config.tasks, evaluate_on="selection")
    base = base_rule(run.model)
    tasks = read_tasks(data, run.seed, base=base, least=run.least_samples, say=show)
    for task in config.tasks:
        count_rows(run.data, task, "test", lambda: base)
    RunFolder(run.folder, run.url).claim(run.as_dict())
    targets = stream_targets(tasks, data, run.evaluation)
    claim_data(run.folder, fingerprints(tasks, targets, data, run.evaluation))


def _found_before(file: Path, config: SweepConfig) -> dict[str, Any]:
    """What a sweep of this name has found so far.

    Raises:
        RunError: It searched something else.
        RunFileError: `sweep.json` is damaged.
    """
    plain = config.as_dict()
    if not file.is_file():
        return {**plain, "tasks": []}
    remedy = "restore it from a copy, or give this sweep another name"
    found = read_object(file, remedy, *plain, "tasks")
    for part, values in plain.items():
        for name, value in values.items():
            if found[part].get(name) != value:
                before = found[part].get(name)
                raise RunError(
                    f"{file}: this sweep has {part}.{name} {before!r}, not {value!r}; set it back, "
                    "or give this sweep another name"
                )
    return found


def _task(
    config: SweepConfig, run: RunConfig, name: str, show: Callable[[str], None]
) -> dict[str, Any]:
    """Probe a task, try its candidates, and commit the winner."""
    work = task_work(config, run, name)
    run_probe(work)
    probed, _ = read_probed(work.folder / "probe")
    shared = read_result(work.folder / "probe", "seconds")
    store = Store.open(config.store)
    before = store.records()[: work.index]
    limit = config.budget.limit(sum(sum(r.parameters.values()) for r in before))
    asked: list[Candidate] = []
    results: dict[str, Result] = {}
    require_affordable(
        [candidate(p, run, probed) for p in points(config.search, run.experts.rank)], limit, name
    )

    def outcome(point: Point) -> Result | None:
        return results.get(candidate(point, run, probed).name)

    seed = f"{run.seed}/{name}"
    for batch in proposals(config.search, run.experts.rank, seed, outcome):
        made = [candidate(point, run, probed) for point in batch]
        new = [c for c in distinct(made) if c.name not in {e.name for e in asked}]
        asked += made
        fit = [c for c in new if limit is None or c.parameters <= limit]
        for result in run_trials(work, fit, show):
            results[result.name] = result
    best = winner(list(results.values()), limit, config.search.tolerance)
    if len(store) == work.index:
        store.append(read_kept(work.folder / best.name))
    show(f"  {best.name}: {best.accuracy:.1f}%, {best.parameters:,} parameters")
    return {
        "task": name,
        "index": work.index,
        "limit": limit,
        **task_summary(asked, results, best, probed, shared["seconds"]),
    }


def task_work(config: SweepConfig, run: RunConfig, name: str) -> Work:
    """A task's place: behind what the log has learned, unless this very sweep put it there.

    Raises:
        RunError: The log has learned it before, or stands elsewhere in the stream.
    """
    learned = Store.open(config.store).tasks
    index = learned.index(name) if name in learned else len(learned)
    folder = run.folder / FOLDER / f"{index:03d}-{name}"
    if name in learned and not (folder / "probe" / RESULT).is_file():
        raise RunError(
            f"{config.store}: has learned {name!r} before, as task {index}, and a log is only "
            "added to; sweep another task"
        )
    return Work(run, config.search, config.store, index, name, folder)


def require_installed(search: SearchConfig) -> None:
    """Refuse Optuna's proposals where Optuna isn't installed.

    Raises:
        RunError: Says how it is installed.
    """
    if search.by == "optuna" and (lack := lacking("Optuna", "optuna", "sweep")):
        raise RunError(
            f"search.by is optuna, and {lack}, and search.by grid and random need nothing more"
        )


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
