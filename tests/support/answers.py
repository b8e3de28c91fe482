"""A short stream's answers, whose figures can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cmoe.data.samples import Sample, Task
from cmoe.evaluation import predictions
from cmoe.evaluation.predictions import (
    Evaluated,
    Key,
    Stage,
    primitives_of,
)
from cmoe.evaluation.results import Facts
from cmoe.modeling.routers import BASE
from cmoe.tasks.scorers import Target

TASKS = tuple(
    Task(name, (), tuple(Sample(i, "?", answer) for i, answer in test.items()))
    for name, test in {
        "GQA": {"g1": "yes", "g2": "no", "g3": "red", "g4": "blue"},
        "ImageNet": {"1": "tench", "2": "shark"},
        "VQAv2": {"1": "2", "2": "yes", "3": "no", "4": "cat"},
    }.items()
)


TARGETS = {task.name: {sample.id: Target(sample.answer) for sample in task.test} for task in TASKS}


DIGESTS = {BASE: "base", 0: "p0", 1: "p1", 2: "p2"}


# By stage the answers that it asked for: task, question, who answers, text.
Answer = tuple[str, str, int, str]


ANSWERS: dict[int, list[Answer]] = {
    BASE: [
        ("GQA", "g1", BASE, "Yes."),  # right in both modes
        ("GQA", "g2", BASE, "maybe"),
        ("GQA", "g3", BASE, "blue"),
        ("GQA", "g4", BASE, ""),
        ("ImageNet", "1", BASE, ""),  # right officially: an empty string is in any answer
        ("ImageNet", "2", BASE, "a shark"),  # right in both
        ("VQAv2", "1", BASE, "2."),  # wrong officially: nothing is stripped
        ("VQAv2", "2", BASE, "YES"),
        ("VQAv2", "3", BASE, "yes"),
        ("VQAv2", "4", BASE, "dog"),
    ],
    0: [
        ("GQA", "g1", 0, "yes"),
        ("GQA", "g2", 0, "no"),
        ("GQA", "g3", 0, "red"),
        ("GQA", "g4", 0, "green"),
        ("ImageNet", "1", 0, "tench"),
        ("ImageNet", "2", 0, "whale"),
    ],
    1: [
        ("GQA", "g1", 1, "no"),
        ("GQA", "g4", 1, "blue"),  # located wrong, and yet right
        ("ImageNet", "1", 1, "tench"),
        ("ImageNet", "2", 1, "shark"),
        ("VQAv2", "1", 0, "2"),
        ("VQAv2", "2", 1, "no"),
        ("VQAv2", "3", 0, "no"),
        ("VQAv2", "4", 1, "dog"),
    ],
    2: [
        ("GQA", "g3", 2, "red"),
        ("ImageNet", "2", 2, "ray"),
        ("VQAv2", "1", 2, "2"),
        ("VQAv2", "2", 2, "Yes"),
        ("VQAv2", "3", 2, "no"),
        ("VQAv2", "4", 2, "Cat."),  # right in strict mode alone
    ],
}


# By stage who answers which task's samples, the next task's included.
LOCATED: dict[int, dict[str, list[int]]] = {
    BASE: {"GQA": [BASE] * 4, "ImageNet": [BASE] * 2, "VQAv2": [BASE] * 4},
    0: {"GQA": [0, 0, 0, 0], "ImageNet": [0, 0]},
    1: {"GQA": [1, 0, 0, 1], "ImageNet": [1, 0], "VQAv2": [0, 1, 0, 1]},
    2: {"GQA": [1, 0, 2, 0], "ImageNet": [1, 2], "VQAv2": [2, 2, 0, 2]},
}


FACTS = Facts(
    method="cmoe",
    digests=DIGESTS,
    parameters=[{"experts": 10 + i, "routers": 2, "locator": 3} for i in range(3)],
    answering=[0, 1, 2],
    base_parameters=1000,
    flops={BASE: 500, 0: 10, 1: 20, 2: 30},
    similarity=[0.5, None],
    seconds={"GQA": {"train": 2.0}, "ImageNet": {"probe": 1.0, "train": 2.0}},
    locates=True,
)


def key(task: str, question: str, by: int) -> Key:
    return Key(task, question, asked(task, question), DIGESTS[by])


def asked(task: str, question: str) -> str:
    """Stands for a digest of what the sample asks."""
    return f"{task}/{question}?"


def write_answers(folder: Path, stage: int, rows: list[Answer]) -> str:
    return predictions.write_answers(folder, stage, {key(*row[:3]): row[3] for row in rows})


def write_stage(
    folder: Path, stage: int, located: Mapping[str, list[int]], answers: Sequence[str]
) -> None:
    tasks = {}
    for task in TASKS:
        if by := located.get(task.name, [])[: len(task.test)]:
            ids = [sample.id for sample in task.test]
            scores = [[] if stage == BASE else [0.5] * (stage + 1) for _ in by]
            questions = [asked(task.name, id_) for id_ in ids]
            tasks[task.name] = Stage(ids, questions, by, [False] * len(by), scores)
    predictions.write_stage(folder, stage, Evaluated(tasks, primitives_of(stage, DIGESTS), answers))


def until(stage: int, facts: Facts = FACTS) -> Facts:
    """What is known after a stage."""
    return replace(
        facts,
        digests={i: d for i, d in facts.digests.items() if i <= stage},
        parameters=facts.parameters[: stage + 1],
        answering=facts.answering[: stage + 1],
        flops={i: n for i, n in facts.flops.items() if i <= stage},
    )
