"""Rows of CoIN's files, as tests write and read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cmoe.common.errors import DataError
from cmoe.data.coin import read_tasks
from cmoe.data.row_rules import BaseRule
from cmoe.data.settings import DataConfig
from cmoe.data.survey import Preparation, survey

Row = dict[str, Any]


TOKENS = ("</s>", "<image>", "<pad>", "<s>")
BASE = BaseRule(TOKENS)


def talk(*texts: str, **more: Any) -> Row:
    """A training row of questions and answers by turns."""
    turns = [
        {"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)
    ]
    return {"id": 7, "image": "a.png", "conversations": turns} | more


def asked(**more: Any) -> Row:
    return {"question_id": 7, "image": "a.png", "text": "What?", "answer": "yes"} | more


GOOD = {"train": talk("<image>\nWhat?", "yes"), "test": asked()}


def write(root: Path, split: str, rows: Any, task: str = "GQA") -> Path:
    """A task's two files, one of them as given and the other without a fault; pictures, too."""
    folder = root / "Instructions_Original" / task
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(root / name)
    box = "[0.1, 0.1, 0.4, 0.4]"
    good = {"train": talk("Where?", box), "test": asked(answer=box)} if task != "GQA" else GOOD
    for each in ("train", "test"):
        content = rows if each == split else [good[each]]
        (folder / f"{each}.json").write_text(json.dumps(content))
    return folder / f"{split}.json"


def read(root: Path, task: str = "GQA") -> Any:
    return read_tasks(DataConfig(root=str(root), tasks=(task,)), seed=0, base=BASE)[0]


def problems(root: Path, task: str = "GQA") -> list[str]:
    return survey(Preparation(root, ".", (task,), "", BASE), map, keep=False).problems


def refusal(root: Path, split: str, row: Any, task: str = "GQA") -> str:
    """What is said of a row behind its file and number, by all that read it alike."""
    good = GOOD[split] if task == "GQA" else None
    rows = [row] if good is None else [good | {"id" if split == "train" else "question_id": 1}, row]
    file = write(root, split, rows, task)
    where = f"{file}, row {len(rows) - 1}: "
    with pytest.raises(DataError) as refused:
        read(root, task)
    assert str(refused.value).startswith(where)
    message = str(refused.value).removeprefix(where)
    assert problems(root, task) == [where + message]
    return message
