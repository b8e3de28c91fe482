"""What a sweep's page says in numbers: its candidates, sums, and what the winners are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tried:
    """A candidate as tables and figures show it.

    Attributes:
        number: Its mark in the task's figures.
        name: See `Candidate`.
        experts: New experts by layer.
        points: Those that came to it, in order, by setting.
        parameters: Scalars that it adds.
        accuracy: Percent of the selection split; None if it was stopped or not tried.
        error: Standard error of the accuracy, in points.
        seconds: Of its trial; None if it came to no end.
        state: `wins`, `front`, `beaten`, `stopped`, or `over budget`.
    """

    number: int
    name: str
    experts: Mapping[int, int]
    points: Sequence[Mapping[str, Any]]
    parameters: int
    accuracy: float | None
    error: float | None
    seconds: float | None
    state: str


def tried_candidates(task: Mapping[str, Any]) -> list[Tried]:
    """All candidates of a task, with what came of them."""
    results = {result["name"]: result for result in task["results"]}
    out = []
    for number, candidate in enumerate(task["candidates"], 1):
        name = candidate["name"]
        result = results.get(name, {"accuracy": None})
        accuracy, error, seconds = result["accuracy"], None, None
        if accuracy is not None:
            share, seconds = accuracy / 100, result["seconds"]
            error = 100 * math.sqrt(share * (1 - share) / result["samples"])
        state = "beaten"
        if name == task["winner"]:
            state = "wins"
        elif name in task["front"]:
            state = "front"
        elif name not in results:
            state = "over budget"
        elif accuracy is None:
            state = "stopped"
        out.append(
            Tried(
                number=number,
                name=name,
                experts=experts_of(candidate),
                points=[p for p in task["points"] if p["candidate"] == name],
                parameters=candidate["parameters"],
                accuracy=accuracy,
                error=error,
                seconds=seconds,
                state=state,
            )
        )
    return out


def winner_of(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """The candidate that won."""
    won: Mapping[str, Any] = next(c for c in task["candidates"] if c["name"] == task["winner"])
    return won


def experts_of(candidate: Mapping[str, Any]) -> dict[int, int]:
    """By layer; JSON has made texts of the layers."""
    return {int(layer): count for layer, count in candidate["experts"].items()}


def sums_of_tasks(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over all tasks."""
    saved = {k: sum(t["saved_seconds"][k] for t in tasks) for k in tasks[0]["saved_seconds"]}
    keys = ("trials", "trial_seconds", "probe_seconds", "parameters")
    experts = sum(sum(experts_of(winner_of(task)).values()) for task in tasks)
    return {
        "saved": saved,
        "experts": experts,
        "points": sum(len(task["points"]) for task in tasks),
        **{key: sum(task[key] for task in tasks) for key in keys},
    }


def stream_row(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the comparison says of a stream; None where it has no such figure."""
    metrics, oracle, location = found["metrics"], found["oracle_metrics"], found["location"]
    parameters = found["parameters"]
    return {
        "learned": len(found["located"]),
        "tasks": len(found["tasks"]),
        "scoring": found["scoring"],
        "oracle": oracle["last"] if oracle else None,
        "location": location["accuracy"] if location else None,
        "added": parameters["added"],
        "share": 100 * parameters["added"] / parameters["base"],
        **{key: metrics[key] if metrics else None for key in ("last", "bwt", "mft")},
    }


def learned_rows(
    tasks: Sequence[Mapping[str, Any]], streams: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Per task its winner, and how each stream answers its test in the end."""
    rows = []
    for task in tasks:
        last = {}
        for label, found in streams.items():
            final = found["located"][-1] if found["located"] else ()
            last[label] = dict(zip(found["tasks"], final, strict=False)).get(task["task"])
        won = winner_of(task)
        rows.append({"task": task, "winner": won, "experts": experts_of(won), "last": last})
    return rows
