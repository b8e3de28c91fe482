"""Data that is prepared, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cmoe.data.prepare import prepare
from cmoe.data.samples import Sample
from cmoe.data.settings import TASKS
from cmoe.data.survey import Preparation, survey


def prepared(root: Path, out: str, tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    job = Preparation(root, ".", tasks, out)
    found = survey(job, map, keep=True)
    assert not found.problems
    return prepare(job, found, map)


def content(sample: Sample) -> tuple[Any, ...]:
    """What a sample says, wherever it is kept."""
    picture = None
    if sample.images:
        with sample.images[0].open("rb") as file:
            picture = file.read()
    return sample.id, sample.text, sample.answer, picture, sample.size, sample.further


def one_task(root: Path, train: int) -> Path:
    """A root with one task of text alone."""
    folder = root / "Instructions_Original" / "GQA"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question_id": i, "text": f"{i}?", "answer": str(i)} for i in range(max(train, 1))]
    for name in ("train", "test"):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return root
