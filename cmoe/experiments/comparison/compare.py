"""Several methods learn the same stream, with the same data, steps and base, and several seeds.

    <runs>/<name>/<method>-<seed>/    a run as any other, with its own report
    <runs>/<name>/tune-<method>-<n>/  a candidate for a method's settings, on the selection split
    <runs>/<name>/comparison.json     what all runs so far came to; comparison.html shows it

A run that is finished is read, one that was interrupted goes on, and with the first seed a method's
run begins with what its chosen candidate has learned: nothing is done twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from statistics import fmean, stdev
from typing import Any

from cmoe.common.errors import RunError
from cmoe.common.mirror import Mirror, mirrored
from cmoe.common.run_files import write_json
from cmoe.common.storage import StorageError
from cmoe.config.changes import changed
from cmoe.config.tree import RunConfig
from cmoe.evaluation.data_identity import read_and_claim
from cmoe.evaluation.results import answering
from cmoe.experiments.comparison.parallel_runs import carry
from cmoe.experiments.comparison.reuse import adopt
from cmoe.experiments.comparison.settings import STUDIED, CompareConfig
from cmoe.experiments.comparison.study import diversity, location, unknown
from cmoe.folder import ALONE, APART, DATA, PREDICTIONS, STORE, by_key
from cmoe.methods.registry import method_entry
from cmoe.mini.tasks import ensure_data
from cmoe.modeling.primitive import LOCATOR
from cmoe.reports.comparison_page import write_comparison
from cmoe.run.launch import require_lasting
from cmoe.run.lease import LeaseError, held
from cmoe.store.log import Store

COMPARISON = "comparison.json"
Carried = Callable[[Sequence[RunConfig]], Iterable[tuple[int, dict[str, Any]]]]
"""`carry`, for the runs of one comparison."""
OWN = ("method", "name", "seed")
"""What every run has for itself."""

ANSWERING = "predict"
"""The one phase of a task that isn't learning."""

PUBLISHED = {
    "base": "LLaVA-1.5-7B class",
    "rows": [
        {"method": "LoRA", "last": 28.74, "maa": 32.97, "bwt": -32.62},
        {"method": "LwF", "last": 30.41, "maa": 34.95, "bwt": -27.03},
        {"method": "EWC", "last": 32.90, "maa": 36.93, "bwt": -27.46},
        {"method": "MoELoRA", "last": 37.13, "maa": 42.76, "bwt": -25.91},
        {"method": "multitask", "last": None, "maa": 57.18, "bwt": None},
    ],
}
"""Figures of others on CoIN, not re-run here."""


def compare(
    config: RunConfig, how: CompareConfig, show: Callable[[str], None] = print
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
                return _carried(config, how, mirror, show)
    except (LeaseError, StorageError) as error:
        raise RunError(str(error)) from error


def _carried(
    config: RunConfig, how: CompareConfig, mirror: Mirror, show: Callable[[str], None]
) -> dict[str, Any]:
    said = _nothing_yet(config, how)
    mirror.folder.mkdir(parents=True, exist_ok=True)
    carried = partial(
        carry, at_once=how.at_once, show=show, begin=cache(partial(_claim, config, mirror))
    )
    try:
        _tune(config, how, said["methods"], carried)
        _learn(config, how, said, show, carried)
        if how.study:
            said["study"] = _studied(config, how, said["methods"][STUDIED], carried)
    finally:  # also of what is known when it is interrupted
        if said["base"]:
            write_json(mirror.folder / COMPARISON, said)
            write_comparison(mirror.folder, said)
            mirror.flush()
    return said


def _claim(config: RunConfig, mirror: Mirror) -> None:
    """Refuse other data than the comparison began with: figures of two sets don't compare."""
    mirror.fetch(DATA)
    data = config.data
    if data.evaluate_on == "test":  # all training rows, whoever parts them how
        data = replace(data, selection=0.0)
    read_and_claim(mirror.folder, data, config.evaluation, config.seed)
    mirror.flush()


def _learn(
    config: RunConfig,
    how: CompareConfig,
    said: dict[str, Any],
    show: Callable[[str], None],
    carried: Carried,
) -> None:
    """Every method with every seed."""
    asked = [(method, seed) for seed in how.seeds for method in how.names]
    runs = [
        of_method(config, m, said["methods"][m]["settings"], f"{m}-{seed}", seed)
        for m, seed in asked
    ]
    for (method, seed), run in zip(asked, runs, strict=True):
        tuned = said["methods"][method]["tuned"]
        if tuned and seed == tuned["seed"]:
            chosen = candidate(config, how, method, tuned["chosen"])
            if run.entry.joint and chosen.data.tasks != run.data.tasks:
                continue  # what all tasks at once teach doesn't begin with some of them
            if adopt(run, chosen):
                show(f"{run.name}: begins with what {chosen.name} has learned")
    for number, found in carried(runs):
        method, _ = asked[number]
        mine = said["methods"][method]
        said["base"] = _base(config, found)
        mine["runs"].append(row(runs[number], found))
        mine["runs"].sort(key=lambda one: how.seeds.index(one["seed"]))
        mine |= summed(mine["runs"])


def require_possible(config: RunConfig, how: CompareConfig) -> None:
    """Refuse settings that some run would be refused for, before any is started.

    Raises:
        RunError: Names the method and the key.
    """
    for method in how.names:
        settings = how.settings.get(method, {})
        more = [*how.candidates.get(method, [])]
        if method == STUDIED:
            more += [one for group in how.study.values() for one in group.values()]
        for chosen in (settings, *(settings | one for one in more)):
            try:
                of_method(config, method, chosen, method, how.seeds[0])
            except ValueError as error:
                raise RunError(f"method {method}: {error}") from error
    names = Counter(study_name(group, label) for group in how.study for label in how.study[group])
    if twice := [name for name, count in names.items() if count > 1]:
        raise RunError(f"study: two labels would name the same folder, {twice[0]}")
    if any(how.candidates.get(method) for method in how.names) and not config.data.selection:
        raise RunError("data.selection is 0; candidates are judged on it: try 0.1")


def of_method(
    config: RunConfig, method: str, settings: Mapping[str, Any], name: str, seed: int
) -> RunConfig:
    """A method's run, in the comparison's folder."""
    own = {"method": method, "name": name, "runs": config.url, "seed": seed}
    return changed(config, {**settings, **own})


def candidate(config: RunConfig, how: CompareConfig, method: str, number: int) -> RunConfig:
    """The stream that one of a method's candidates is judged by."""
    settings = how.settings.get(method, {}) | how.candidates[method][number]
    run = of_method(config, method, settings, f"tune-{method}-{number}", how.seeds[0])
    tasks = config.data.tasks[: how.candidate_tasks]
    return replace(run, data=replace(run.data, tasks=tasks, evaluate_on="selection"))


def row(config: RunConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """A finished run in a line, from its `matrix.json`."""
    parameters, location, latency = found["parameters"], found["location"], found["latency"]
    trained = [n for parts in parameters["tasks"].values() if (n := _trained(parts))]
    spent = {
        (task, phase): seconds
        for task, phases in found["seconds"].items()
        for phase, seconds in phases.items()
    }
    oracle = found["oracle_metrics"]
    return {
        "seed": config.seed,
        "run": config.name,
        **found["metrics"],
        "location": location["accuracy"] if location else None,
        "oracle": oracle["last"] if oracle else None,
        "added": parameters["added"],
        "trainable": round(fmean(trained)) if trained else 0,
        "kept": parameters["kept"],
        "peak_memory": found["peak_memory"],
        "learning_flops": found["learning_flops"],
        "seconds": sum(spent.values()),
        "learning_seconds": sum(
            seconds
            for (task, phase), seconds in spent.items()
            if task != ALONE and phase != ANSWERING
        ),
        "latency": latency["answer"] if latency else None,
        "base_latency": latency["base"] if latency else None,
        "located": found["located"],
        "zero_shot": found["zero_shot"],
        "oracle_last": found["oracle"][-1] if found["oracle"] else None,
        "similarity": found["expert_similarity"],
    }


def summed(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample deviation of every figure over the seeds; None where one has none."""
    mean: dict[str, float | None] = {}
    deviation: dict[str, float | None] = {}
    for key, first in runs[0].items():
        values = [run[key] for run in runs]
        if key in ("seed", "run") or isinstance(first, list):
            continue
        known = None not in values
        mean[key] = fmean(values) if known else None
        deviation[key] = stdev(values) if known and len(values) > 1 else None
    return {"mean": mean, "deviation": deviation}


def table(said: Mapping[str, Any]) -> str:
    """The comparison, to be read on a screen: the best Last first, bounds behind."""
    order = sorted(
        said["methods"].items(),
        key=lambda item: (bool(item[1]["knows"]), -item[1]["mean"]["last"]),
    )
    columns = ("last", "mft", "maa", "bwt", "location")
    lines = [f"{'':<16}" + "".join(f"{name.upper():>14}" for name in columns) + f"{'added':>12}"]
    for method, mine in order:
        cells = [_pair(mine["mean"][name], mine["deviation"][name]) for name in columns]
        knows = f"  (given {mine['knows']})" if mine["knows"] else ""
        added = f"{mine['mean']['added']:>12,.0f}"
        lines.append(f"{method:<16}" + "".join(f"{c:>14}" for c in cells) + added + knows)
    return "\n".join(lines)


def _studied(
    config: RunConfig, how: CompareConfig, mine: Mapping[str, Any], carried: Carried
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
    found = dict(carried(configs))
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
            "location": location(mirror.folder, store, tasks),
            "unknown": {
                "reject": store.header.settings["locator"]["reject"],
                "curves": unknown(mirror.folder, tasks),
            },
            "diversity": diversity(first["similarity"], store),
        }


def study_name(group: str, label: str) -> str:
    """Of the runs of a study's variant, but for the seed."""
    return f"study-{slug(group)}-{slug(label)}"


def slug(text: str) -> str:
    """A text as part of a folder's name."""
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower())


def _pair(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def _nothing_yet(config: RunConfig, how: CompareConfig) -> dict[str, Any]:
    return {
        "name": config.name,
        "tasks": list(config.data.tasks),
        "scoring": config.evaluation.scoring,
        "evaluated_on": config.data.evaluate_on,
        "base": {},
        "shared": {k: v for k, v in by_key(config.as_dict()).items() if k not in OWN},
        "seeds": list(how.seeds),
        "methods": {
            method: {"knows": entry.told, "about": entry.about, "runs": []}
            for method, entry in ((name, method_entry(name)) for name in how.names)
        },
        "published": PUBLISHED,
        "study": None,
    }


def _base(config: RunConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": config.model.name,
        "revision": config.model.revision or "default",
        "parameters": found["parameters"]["base"],
        "flops_per_token": found["flops_per_token"]["base"],
    }


def _trained(parts: Mapping[str, int]) -> int:
    """Scalars of a primitive that its task's training moved: the locator is fitted beside it."""
    return sum(count for part, count in answering(parts).items() if part != LOCATOR)


def _tune(
    config: RunConfig,
    how: CompareConfig,
    methods: Mapping[str, dict[str, Any]],
    carried: Carried,
) -> None:
    """Give every method its settings, the best of its candidates on the selection split."""
    asked = [
        (method, number)
        for method in how.names
        for number in range(len(how.candidates.get(method, [])))
    ]
    runs = [candidate(config, how, method, number) for method, number in asked]
    found = dict(carried(runs))
    for method, mine in methods.items():
        mine |= {"settings": how.settings.get(method, {}), "tuned": None}
        tried = [
            {"settings": how.candidates[method][n], "last": found[i]["metrics"]["last"]}
            for i, (m, n) in enumerate(asked)
            if m == method
        ]
        if tried:
            chosen = max(range(len(tried)), key=lambda n: tried[n]["last"])
            mine["settings"] = mine["settings"] | tried[chosen]["settings"]
            run = runs[asked.index((method, chosen))]
            mine["tuned"] = {
                "seed": run.seed,
                "tasks": list(run.data.tasks),
                "candidates": tried,
                "chosen": chosen,
            }
