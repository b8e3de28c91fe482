"""What a choice of layers is worth: a task learned in the chosen layers, and in many others.

    <run>/store/                       the tasks before (`choice.store` is another's)
    <run>/choice/<task>/probe/         the task's probes, and the order that greedy search found
    <run>/choice/<task>/<set>-<n>.json what came of the n-th training of a set
    <run>/choice.json                  all sets, and what they say; choice.html shows it

The log makes the sets branches of one prefix: they share all tasks before, and are trained side by
side. A study that was cut off goes on with the sets that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from cmoe.common.errors import RunError
from cmoe.common.log_lines import say
from cmoe.common.run_files import read_object, write_json
from cmoe.common.storage import is_remote
from cmoe.config.tree import RunConfig
from cmoe.data.coin import read_tasks
from cmoe.evaluation.data_identity import claim_data, fingerprints
from cmoe.evaluation.targets import stream_targets
from cmoe.experiments.choice.sets import LayerSet, judged, layer_sets
from cmoe.experiments.choice.settings import ChoiceConfig
from cmoe.experiments.choice.worker import learn_next, learn_set, probe_task, read_greedy
from cmoe.experiments.sweep.tuner import require_store
from cmoe.experiments.sweep.worker import read_probed
from cmoe.folder import STORE, RunFolder
from cmoe.methods.method import seed_of
from cmoe.mini.tasks import ensure_data
from cmoe.run.launch import check_model, require_lasting
from cmoe.run.lease import LeaseError, held
from cmoe.run.worker_group import rooted, session
from cmoe.store.log import Store
from cmoe.tasks.base_rule import base_rule

CHOICE, FOLDER = "choice.json", "choice"


def choice(
    config: RunConfig, how: ChoiceConfig, show: Callable[[str], None] = say
) -> dict[str, Any]:
    """Carry the study to its end, from wherever its folder stands.

    Args:
        config: The run that learns the tasks before; its `probe` and `experts` are judged.
        how: Which tasks, and beside how many sets.
        show: Receives lines for the screen.

    Returns:
        The contents of `choice.json`.

    Raises:
        RunError: The study can't be done as configured, another job drives it, or a training
            failed.
        DataError: The data is missing, wrong, or not what the study began with.
        StoreError: The store is another base's, or damaged.
        StorageError: A folder can't be used.
    """
    require_possible(config, how)
    require_lasting(config.runs)
    RunFolder(config.folder, config.url).require_same(config.as_dict() | {"choice": how.as_dict()})
    try:
        with held(str(config.folder), show):
            return _chosen(config, how, show)
    except LeaseError as error:
        raise RunError(str(error)) from error


def require_possible(config: RunConfig, how: ChoiceConfig) -> None:
    """Refuse what can't be studied, before anything begins.

    Raises:
        RunError: Says what would be right.
    """
    tasks = config.data.tasks
    problems = []
    if config.method != "cmoe" or not config.probe.enabled:
        problems.append("only cmoe with probe.enabled chooses layers")
    if not config.data.selection:
        problems.append("data.selection is 0; sets are judged on it: try 0.1")
    if is_remote(config.runs):
        problems.append(
            f"runs is {config.runs!r}; the study's folder is on a disk that nodes share"
        )
    if not how.tasks:
        problems.append(
            "choice.tasks is empty; name one or more, for example --choice.tasks '[GQA]'"
        )
    for task in how.tasks:
        if task not in tasks[1:]:
            problems.append(
                f"choice.tasks names {task!r}; of data.tasks, any but the first: "
                f"{', '.join(tasks[1:]) or 'there is no other'}"
            )
    if problems:
        raise RunError("; ".join(problems))


def _chosen(config: RunConfig, how: ChoiceConfig, show: Callable[[str], None]) -> dict[str, Any]:
    check_model(config)
    ensure_data(config.data)
    _claim(config, how)
    run, folder = rooted(config), Path(config.folder)
    store = str(Path(how.store or folder / STORE).absolute())
    found: dict[str, Any] = {
        "settings": {
            "choice": how.as_dict(),
            "experts": asdict(run.experts),
            "probe": asdict(run.probe),
        },
        "tasks": [],
    }
    with session(run):
        require_store(run, store, start=how.store is None)
        start = Started(how, show)
        last = max(run.data.tasks.index(task) for task in how.tasks)
        _require_prefix(store, run.data.tasks[:last], given=how.store is not None)
        for index in range(len(Store.open(store)), last):
            show(f"{run.data.tasks[index]}: learned before the task that is studied")
            start.all([(learn_next, (run, store, index))])
        for task in how.tasks:
            found["tasks"].append(_task(run, how, store, task, folder / FOLDER / task, start))
            write_json(folder / CHOICE, found)
    return found


def _claim(config: RunConfig, how: ChoiceConfig) -> None:
    """Refuse rows that can't be used, and other data than the study began with."""
    last = max(config.data.tasks.index(task) for task in how.tasks)
    data = replace(config.data, tasks=config.data.tasks[: last + 1], evaluate_on="selection")
    base = base_rule(config.model)
    tasks = read_tasks(data, config.seed, base=base, least=config.least_samples)
    targets = stream_targets(tasks, data, config.evaluation)
    folder = RunFolder(config.folder, config.url)
    folder.claim(config.as_dict() | {"choice": how.as_dict()})
    claim_data(config.folder, fingerprints(tasks, targets, data, config.evaluation))


def _require_prefix(store: str, tasks: Sequence[str], *, given: bool) -> None:
    """Refuse a log that doesn't begin with the tasks before, or that isn't ours to add to.

    Raises:
        RunError: Says what it has.
    """
    have = Store.open(store).tasks
    if have[: len(tasks)] != tuple(tasks)[: len(have)] or (given and len(have) < len(tasks)):
        raise RunError(
            f"{store}: has learned {', '.join(have) or 'nothing'}; a log that begins with "
            f"{', '.join(tasks)} is needed, or none (choice.store null), and they are learned first"
        )


def _task(
    run: RunConfig, how: ChoiceConfig, store: str, task: str, folder: Path, start: Started
) -> dict[str, Any]:
    """Probe a task, learn it in every set, and judge what was chosen."""
    folder.mkdir(parents=True, exist_ok=True)
    start.all([(probe_task, (run, store, task, how.layers, folder / "probe"))])
    probed, _ = read_probed(folder / "probe")
    assert probed.probing is not None, "a task with tasks before it is probed"
    if how.layers > len(probed.older):
        raise RunError(
            f"choice.layers is {how.layers}; the base has {len(probed.older)} decoder layers"
        )
    costs = [run.experts.rank * width + probed.hidden for width in probed.widths]
    sets = layer_sets(
        probed.probing,
        read_greedy(folder / "probe"),
        run.probe,
        run.experts,
        count=how.layers,
        random=how.random,
        costs=costs,
        beside=probed.beside,
        seed=seed_of(run.seed, task, "choice"),
    )
    files = {(s, n): folder / f"{s.key}-{n}.json" for s in sets for n in range(how.repeats)}
    start.show(f"{task}: {len(sets)} sets of layers, {len(files)} trainings")
    start.all(
        (learn_set, (run, store, task, folder / "probe", chosen, n, file))
        for (chosen, n), file in files.items()
    )
    rows = [_row(chosen, [files[chosen, n] for n in range(how.repeats)]) for chosen in sets]
    scores = {str(name): list(values) for name, values in probed.probing.scores().items()}
    said = judged(rows, scores)
    start.show(f"{task}: " + "; ".join(_told(name, one) for name, one in said["chosen"].items()))
    return {
        "task": task,
        "before": list(run.data.tasks[: run.data.tasks.index(task)]),
        "layers": len(probed.older),
        "scores": scores,
        "sets": rows,
        **said,
    }


def _row(chosen: LayerSet, files: Sequence[Path]) -> dict[str, Any]:
    remedy = "remove it, and the same command trains that set again"
    keys = ("loss", "samples", "parameters", "seconds")
    results = [read_object(file, remedy, *keys) for file in files]
    losses = [one["loss"] for one in results]
    return {
        **asdict(chosen),
        "parameters": results[0]["parameters"],
        "losses": losses,
        "loss": fmean(losses),
        "seconds": sum(one["seconds"] for one in results),
    }


def _told(name: str, one: dict[str, Any]) -> str:
    return f"{name} {one['loss']:.4f} (better than {one['percentile']:.0f}%)"


class Started:
    """Starts functions as processes of the cluster, as many at once as it has room for."""

    def __init__(self, how: ChoiceConfig, show: Callable[[str], None]) -> None:
        import ray

        have = ray.cluster_resources()
        gpus = min(1.0, have.get("GPU", 0)) if how.gpus is None else how.gpus
        for name, wanted, there in (("cpus", how.cpus, "CPU"), ("gpus", gpus, "GPU")):
            if wanted > have.get(there, 0):  # a node may join: clusters grow by what is asked for
                show(
                    f"choice.{name} is {wanted:g}, and the cluster has {have.get(there, 0):g}: "
                    "waits for a node to join"
                )
        self.show = show
        self._options: dict[str, Any] = {"num_cpus": how.cpus, "num_gpus": gpus, "max_retries": 3}

    def all(self, calls: Iterable[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        """Let every call come to its end.

        Raises:
            RunError: One failed; the others end first.
        """
        import ray

        waiting: list[Any] = [
            ray.remote(function).options(**self._options).remote(*arguments)
            for function, arguments in calls
        ]
        failed: Exception | None = None
        while waiting:
            (ended, *_), waiting = ray.wait(waiting)
            try:
                ray.get(ended)
            except Exception as error:  # with Ray's own text around it
                failed = getattr(error, "cause", error)
        if failed is not None:
            raise RunError(f"a training failed: {failed}; the same command goes on") from failed
