"""Several methods learn the same stream, with the same data, steps and base, and several seeds.

    <runs>/<name>/<method>-<seed>/    a run as any other, with its own report
    <runs>/<name>/tune-<method>-<n>-<seed>/
                                      a candidate for a method's settings, on the selection split
    <runs>/<name>/comparison.json     what all runs so far came to; comparison.html shows it

A run that is finished is read, one that was interrupted is resumed, and with a seed that judged
candidates a method's run begins with what the chosen one has learned: nothing is done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from statistics import fmean
from typing import Any

from cmoe.common.errors import RunError
from cmoe.common.log_lines import say
from cmoe.common.remote.mirror import Mirror, mirrored
from cmoe.common.run_files import write_json
from cmoe.common.storage import StorageError
from cmoe.config.tree import RunConfig
from cmoe.evaluation.data_identity import read_and_claim
from cmoe.experiments.comparison.intervals import last_interval, paired
from cmoe.experiments.comparison.parallel_runs import run_parallel
from cmoe.experiments.comparison.runs import candidate, of_method, require_possible, study_name
from cmoe.experiments.comparison.settings import STUDIED, CompareConfig
from cmoe.experiments.comparison.study import expert_diversity, location_by_tasks, unknown_curves
from cmoe.experiments.comparison.summary import nothing_yet, of_base, row, summed
from cmoe.folder import APART, DATA, PREDICTIONS, STORE
from cmoe.mini.tasks import ensure_data
from cmoe.reports.comparison_page import write_comparison
from cmoe.run.launch import require_lasting
from cmoe.run.lease import LeaseError, held
from cmoe.store.log import Store

COMPARISON = "comparison.json"
Finish = Callable[..., Iterable[tuple[int, dict[str, Any]]]]
"""`run_parallel`, for the runs of one comparison."""


def compare(
    config: RunConfig, how: CompareConfig, show: Callable[[str], None] = say
) -> dict[str, Any]:
    """Carry every run of a comparison to its end, and write what they came to.

    Args:
        config: What all methods share; its name is the comparison's.
        how: Which methods, and how often.
        show: Receives what is to be read on the way.

    Returns:
        The contents of `comparison.json`.

    Raises:
        RunError: A method's setting is impossible, and nothing was started; another job drives the
            comparison; a run failed, or one of its name was configured otherwise.
        DataError: The data is missing, wrong, or not what the comparison began with.
    """
    require_possible(config, how)
    require_lasting(config.runs)
    try:
        with held(config.url, show):
            ensure_data(config.data)  # once: runs that begin together would all write it
            with mirrored(config.url) as mirror:
                return _compared(config, how, mirror, show)
    except (LeaseError, StorageError) as error:
        raise RunError(str(error)) from error


def _compared(
    config: RunConfig, how: CompareConfig, mirror: Mirror, show: Callable[[str], None]
) -> dict[str, Any]:
    comparison = nothing_yet(config, how)
    mirror.folder.mkdir(parents=True, exist_ok=True)
    finish = partial(
        run_parallel, at_once=how.at_once, show=show, begin=cache(partial(_claim, config, mirror))
    )
    try:
        _tune(config, how, comparison["methods"], finish)
        _learn(config, how, comparison, finish)
        if how.study:
            comparison["study"] = _studied(config, how, comparison["methods"][STUDIED], finish)
    finally:  # also of what is known when it is interrupted
        if comparison["base"]:
            write_json(mirror.folder / COMPARISON, comparison)
            write_comparison(mirror.folder, comparison)
            mirror.flush()
    return comparison


def _claim(config: RunConfig, mirror: Mirror) -> None:
    """Refuse other data than the comparison began with: figures of two sets don't compare."""
    mirror.fetch(DATA)
    data = config.data
    if data.evaluate_on == "test":  # all training rows, whoever parts them how
        data = replace(data, selection=0.0)
    read_and_claim(mirror.folder, data, config.evaluation, config.seed)
    mirror.flush()


def _tune(
    config: RunConfig,
    how: CompareConfig,
    methods: Mapping[str, dict[str, Any]],
    finish: Finish,
) -> None:
    """Give every method its settings, the best of its candidates on the selection split."""
    seeds = how.seeds[: how.candidate_seeds]
    asked = [
        (method, number, seed)
        for method in how.names
        for number in range(len(how.candidates.get(method, [])))
        for seed in seeds
    ]
    runs = [candidate(config, how, *one) for one in asked]
    found = {asked[i]: matrix["metrics"]["last"] for i, matrix in finish(runs)}
    for method, mine in methods.items():
        mine |= {"settings": how.settings_of(method), "tuned": None}
        tried: list[dict[str, Any]] = []
        for number, settings in enumerate(how.candidates.get(method, [])):
            lasts = [found[method, number, seed] for seed in seeds]
            tried.append({"settings": settings, "lasts": lasts, "last": fmean(lasts)})
        if tried:
            chosen = max(range(len(tried)), key=lambda n: tried[n]["last"])
            mine["settings"] = mine["settings"] | tried[chosen]["settings"]
            mine["tuned"] = {
                "seeds": list(seeds),
                "tasks": list(config.data.tasks[: how.candidate_tasks]),
                "candidates": tried,
                "chosen": chosen,
            }


def _learn(
    config: RunConfig, how: CompareConfig, comparison: dict[str, Any], finish: Finish
) -> None:
    """Every method with every seed, from what its chosen candidate has learned with that seed."""
    methods = comparison["methods"]
    scores: dict[str, dict[int, Any]] = {}
    asked = [(method, seed) for seed in how.seeds for method in how.names]
    runs = [
        of_method(config, how.method_of(m), methods[m]["settings"], f"{m}-{seed}", seed)
        for m, seed in asked
    ]
    learned: dict[int, RunConfig] = {}
    for number, (method, seed) in enumerate(asked):
        tuned = methods[method]["tuned"]
        if tuned and seed in tuned["seeds"]:
            chosen = candidate(config, how, method, tuned["chosen"], seed)
            # What all tasks at once teach doesn't begin with some of them.
            if not chosen.entry.joint or chosen.data.tasks == runs[number].data.tasks:
                learned[number] = chosen
    for number, found in finish(runs, learned=learned):
        method, seed = asked[number]
        mine = methods[method]
        comparison["base"] = of_base(config, found)
        mine["runs"].append(row(runs[number], found))
        mine["runs"].sort(key=lambda one: how.seeds.index(one["seed"]))
        mine |= summed(mine["runs"])
        if "last_scores" in found:  # not in those of earlier versions
            scores.setdefault(method, {})[seed] = found["last_scores"]
            mine["last_interval"] = last_interval(scores[method], found["tasks"])
    if STUDIED in scores:
        comparison["paired"] = paired(STUDIED, scores, config.data.tasks)


def _studied(
    config: RunConfig, how: CompareConfig, mine: Mapping[str, Any], finish: Finish
) -> dict[str, Any]:
    """The study's own streams, and what the method's stream with the first seed shows."""
    asked = [
        (group, label, seed)
        for group, variants in how.study.items()
        for label in variants
        for seed in how.seeds
    ]
    configs = [
        of_method(
            config,
            STUDIED,
            mine["settings"] | how.study[group][label],
            f"{study_name(group, label)}-{seed}",
            seed,
        )
        for group, label, seed in asked
    ]
    found = dict(finish(configs))
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number, (group, label, _) in enumerate(asked):
        runs.setdefault((group, label), []).append(row(configs[number], found[number]))
    groups = [
        {
            "name": group,
            "variants": [
                {"label": label, "settings": settings, "runs": runs[group, label]}
                | summed(runs[group, label])
                for label, settings in variants.items()
            ],
        }
        for group, variants in how.study.items()
    ]
    first = mine["runs"][0]
    tasks = config.data.tasks
    url = f"{config.url}/{first['run']}"
    with mirrored(url, apart=APART) as mirror:
        mirror.fetch(PREDICTIONS)
        store = Store.open(f"{url}/{STORE}")
        return {
            "method": STUDIED,
            "run": first["run"],
            "groups": groups,
            "location": location_by_tasks(mirror.folder, store, tasks),
            "unknown": {
                "reject": store.header.settings["locator"]["reject"],
                "curves": unknown_curves(mirror.folder, tasks),
            },
            "diversity": expert_diversity(first["similarity"], store),
        }
