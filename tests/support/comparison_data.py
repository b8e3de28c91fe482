"""A comparison made by hand, and its page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from support.pages import HOSTILE, Page

from cmoe.evaluation.metrics import summary
from cmoe.reports.comparison_page import write_comparison

TASKS = ("ScienceQA", HOSTILE, "GQA")
BASE, ZERO_SHOT = 1_000_000, [31.25, 18.75, 12.5]


def one_run(
    method: str, seed: int, level: float, fall: float, added: int, **more: Any
) -> dict[str, Any]:
    """A run whose tasks fall by so many points with every task after them."""
    located = [
        [level + 4 * j + seed - fall * (i - j) if j <= i else None for j in range(3)]
        for i in range(3)
    ]
    return {
        "seed": seed,
        "run": f"{method}-{seed}",
        **summary(located),
        "fwt": 1.25,
        "location": None,
        "oracle": None,
        "added": added,
        "trainable": 90_123,
        "kept": 0,
        "peak_memory": 1.5 * 2**30,
        "learning_flops": 1.25e13,
        "seconds": 300.0 + 60 * seed,
        "learning_seconds": 180.0,
        "latency": 0.02,
        "base_latency": 0.016,
        "located": located,
        "zero_shot": ZERO_SHOT,
        "oracle_last": None,
        "similarity": None,
        **more,
    }


def a_method(
    runs: list[dict[str, Any]], about: str, knows: str = "", **more: Any
) -> dict[str, Any]:
    """What is said of a method, from its runs."""
    lists = ("located", "zero_shot", "oracle_last", "similarity")
    scalars = [k for k in runs[0] if k not in ("seed", "run", *lists)] if runs else []
    columns = {key: [run[key] for run in runs] for key in scalars}
    return {
        "knows": knows,
        "about": about,
        "settings": {},
        "runs": runs,
        "mean": {k: None if None in v else fmean(v) for k, v in columns.items()},
        "deviation": {k: None if None in v or len(v) < 2 else stdev(v) for k, v in columns.items()},
        "tuned": None,
        **more,
    }


def methods(seeds: Sequence[int]) -> dict[str, Any]:
    """Two rivals, what learns nothing, and two bounds."""
    by_router: dict[str, Any] = {
        "location": 98.5,
        "oracle": 75.0,
        "oracle_last": [76.0, 75.0, 74.0],
    }
    by_router["similarity"] = [0.125, None]
    nothing: dict[str, Any] = {"trainable": 0, "learning_flops": 0}
    idle = [
        one_run("zero_shot", s, 0, 0, 0, **nothing)
        | {"located": [[v if j <= i else None for j, v in enumerate(ZERO_SHOT)] for i in range(3)]}
        | {"last": 20.75, "mft": 20.75, "maa": 25.0, "bwt": 0.0, "bwt_t_minus_1": 0.0, "fwt": 0.0}
        for s in seeds
    ]
    tuned = {
        "seeds": [*seeds[:2]],
        "tasks": [TASKS[0], TASKS[2]],
        "candidates": [
            {
                "settings": {"training.learning_rate": 0.002},
                "lasts": [60.0, 62.5][: len(seeds)],
                "last": 61.25,
            },
            {
                "settings": {"training.learning_rate": 0.006, "ewc.weight": HOSTILE},
                "lasts": [64.0, 65.5][: len(seeds)],
                "last": 64.75,
            },
        ],
        "chosen": 1,
    }
    missing = {"peak_memory": None, "latency": None, "base_latency": None, "fwt": None}
    return {
        "lora": a_method(
            [one_run("lora", s, 70.0, 20, 50_000, **missing) for s in seeds],
            "one that goes on",
            settings={"training.learning_rate": 0.002, "x": HOSTILE},
            tuned=tuned,
        ),
        "zero_shot": a_method(idle, "the base alone"),
        "multitask": a_method(
            [one_run("multitask", s, 80.0, 0, 50_000) for s in seeds],
            "at once",
            "all tasks at once",
        ),
        "cmoe": a_method(
            [one_run("cmoe", s, 70.5, 0.75, 300_000 + 1000 * s, **by_router) for s in seeds],
            "experts & routers",
        ),
        "per_task_lora": a_method(
            [one_run("per_task_lora", s, 72.0, 0, 150_000) for s in seeds],
            "each its own",
            "the task",
        ),
    }


def variant(
    label: str, settings: dict[str, Any], seeds: Sequence[int], *more: Any
) -> dict[str, Any]:
    name = f"study-{label}"
    runs = [one_run(name, s, *more, location=97.25, oracle=76.25) for s in seeds]
    made = a_method(runs, "", settings=settings)
    return {key: made[key] for key in ("settings", "runs", "mean", "deviation")} | {"label": label}


def study(seeds: Sequence[int]) -> dict[str, Any]:
    curve = {"fpr": [0.0, 0.25, 1.0], "tpr": [0.0, 0.875, 1.0], "false_alarms": 1.5}
    reverse = {"data.tasks": TASKS[::-1]}
    return {
        "method": "cmoe",
        "run": "cmoe-0",
        "groups": [
            {
                "name": HOSTILE,
                "variants": [
                    variant("by chance", {"probe.rule": "random"}, seeds, 66.5, 0, 290_000),
                    variant("everywhere", {"probe.enabled": False}, seeds, 72.5, 1, 600_000),
                ],
            },
            {
                "name": "order of tasks",
                "variants": [variant("reversed", reverse, seeds, 68.5, 0, 310_000)],
            },
        ],
        "location": [{"tasks": n, "accuracy": 100.0 - n, "score_us": 12.5 * n} for n in (1, 2, 3)],
        "unknown": {
            "reject": 0.99,
            "curves": [
                {"held_out": HOSTILE, "known": 1, "auc": 0.9375, "caught": 88.25, **curve},
                {"held_out": "GQA", "known": 2, "auc": 0.8125, "caught": 71.75, **curve},
            ],
        },
        "diversity": [
            {"layer": 0, "experts": 3, "cosine": 0.375},
            {"layer": 1, "experts": 1, "cosine": None},
        ],
    }


def compared(seeds: Sequence[int] = (0, 1)) -> dict[str, Any]:
    """A whole comparison of three tasks, as it is read from its file."""
    values = {
        "name": "compared",
        "tasks": TASKS,
        "scoring": "official",
        "evaluated_on": "test",
        "base": {
            "name": "mini",
            "revision": "r1",
            "parameters": BASE,
            "flops_per_token": 1_234_567,
        },
        "shared": {"probe.rule": "relative", "probe.enabled": True, "data.tasks": TASKS},
        "seeds": seeds,
        "methods": methods(seeds),
        "paired": {
            "reference": "cmoe",
            "others": {
                "lora": {"difference": 31.25, "interval": [28.5, 34.0], "beyond": True},
                HOSTILE: {"difference": -0.25, "interval": [-1.5, 1.0], "beyond": False},
            },
        },
        "published": {
            "base": "a larger one",
            "rows": [
                {"method": "LoRA", "last": 28.74, "maa": 32.97, "bwt": -32.62},
                {"method": "all", "last": None, "maa": 57.18, "bwt": None},
            ],
        },
        "study": study(seeds),
    }
    read: dict[str, Any] = json.loads(json.dumps(values))
    return read


def page(folder: Path, said: dict[str, Any]) -> Page:
    """Of a comparison, written to a folder."""
    write_comparison(folder, said)
    return Page(folder / "comparison.html")


FIGURES = {
    "Last by added parameters",
    *(f"Accuracy of {name} by stage" for name in methods((0,))),
    "Last by method and task",
}
STUDY_FIGURES = {
    "Zero-shot, oracle and located accuracy of cmoe by task",
    *(f"Last by added parameters, by {name}" for name in (HOSTILE, "order of tasks")),
    *(f"Last by task, by {name}" for name in (HOSTILE, "order of tasks")),
    "Located right by number of tasks",
    "Time of a score by number of tasks",
    "Unlearned samples called unknown by learned ones called so",
}
