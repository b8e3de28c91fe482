"""Several runs on one Ray cluster, so many at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from cmoe.config.tree import RunConfig
from cmoe.experiments.comparison.reuse import reuse_primitives
from cmoe.reports.run_page import write_run_page
from cmoe.run.launch import drive, read_finished
from cmoe.run.lease import held
from cmoe.run.worker_group import session


def run_parallel(
    runs: Sequence[RunConfig],
    at_once: int,
    show: Callable[[str], None],
    begin: Callable[[], None],
    learned: Mapping[int, RunConfig] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run each to its end, and write its page; those that are finished are read.

    Args:
        runs: On the same cluster.
        at_once: So many have their workers at a time.
        show: Told what begins and what has ended.
        begin: Called before any run that isn't at its end.
        learned: By a run's number, the run whose primitives it begins with.

    Yields:
        A run's number, and the contents of its `matrix.json`, as it ends.

    Raises:
        RunError: A run failed, or one of its name was configured otherwise.
        LeaseError: Another job drives one of them.
        StorageError: A run's folder can't be used.
        DataError: The data is missing or wrong.
    """
    known = [read_finished(config) for config in runs]
    waiting = [number for number, found in enumerate(known) if found is None]
    for number in waiting:
        if learned and number in learned and reuse_primitives(runs[number], learned[number]):
            show(f"{runs[number].name}: begins with what {learned[number].name} has learned")
    for number, found in enumerate(known):
        if found is not None:
            write_run_page(runs[number].url)
            yield number, found
    if not waiting:
        return
    begin()
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Leases are this process's: those of a run end with it, however it ends.
    with ExitStack() as leases, session(runs[0]):
        # As if they were started by hand: here, where their folders are.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        start: Any = ray.remote(num_cpus=0, max_retries=0)(_run)
        start = start.options(scheduling_strategy=here)
        under_way: dict[Any, int] = {}
        released: dict[int, ExitStack] = {}
        while waiting or under_way:
            while waiting and len(under_way) < at_once:
                number = waiting.pop(0)
                released[number] = leases.enter_context(ExitStack())
                released[number].enter_context(held(runs[number].url, show))
                show(f"{runs[number].name}: begun, see {runs[number].url}/run.log")
                under_way[start.remote(runs[number], os.getcwd())] = number
            (ended,), _ = ray.wait([*under_way])
            number = under_way.pop(ended)
            try:
                found = ray.get(ended)
            except Exception as error:  # with Ray's own text around it
                raise getattr(error, "cause", error) from error
            released.pop(number).close()
            show(f"{runs[number].name}: Last {found['metrics']['last']:.1f}")
            yield number, found


def _run(config: RunConfig, folder: str) -> dict[str, Any]:
    os.chdir(folder)
    found = drive(config, lambda _: None)
    write_run_page(config.url)
    return found
