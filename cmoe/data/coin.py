"""CoIN's files: one folder per task, a list of questions per split, pictures under one root.

<root>/Instructions_Original/<Task>/train.json, test.json or val.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from cmoe.data.mini import TASKS, write_mini_coin

PLACEHOLDER = "<image>"
TEST_FILES = ("test.json", "val.json")


class DataError(ValueError):
    """A file or a row that can't be used; names the file, the row and what would be right."""


@dataclass(frozen=True)
class DataConfig:
    """The stream's tasks and their files.

    Attributes:
        root: Folder with `Instructions_Original/`.
        images: Folder that the rows' picture paths are relative to; itself relative to `root`.
        tasks: The stream, in the order of learning.
        generate: Write the generated mini CoIN to `root` where nothing is there yet.
        train_samples: Training samples a task at most; null takes all.
        test_samples: Test samples a task at most; null takes all.
        selection: Share of the training samples kept from training, to choose settings on.
        evaluate_on: `test`, or `selection`, which leaves the test files unread.
        max_length: Tokens of prompt and answer together; null takes the base's own limit.
        loader_workers: Processes per worker that prepare batches ahead; 0 prepares in place.
    """

    root: str = "data/coin"
    images: str = "."
    tasks: tuple[str, ...] = TASKS
    generate: bool = False
    train_samples: int | None = None
    test_samples: int | None = None
    selection: float = 0.0
    evaluate_on: Literal["test", "selection"] = "test"
    max_length: int | None = None
    loader_workers: int = 0

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"data.tasks is {list(self.tasks)}; one task or more, each once")
        if not 0 <= self.selection < 1:
            raise ValueError(f"data.selection is {self.selection}; 0 or more, and less than 1")
        if self.evaluate_on == "selection" and not self.selection:
            raise ValueError("data.evaluate_on is selection, but data.selection is 0; try 0.1")
        if self.loader_workers < 0:
            raise ValueError(f"data.loader_workers is {self.loader_workers}; at least 0")
        for name in ("train_samples", "test_samples", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name} is {value}; at least 1, or null")
        if self.generate and not (self.train_samples and self.test_samples):
            raise ValueError("data.generate needs data.train_samples and data.test_samples")


@dataclass(frozen=True)
class Sample:
    """One question, about a picture or about nothing but its text.

    Attributes:
        id: As in the file; unique in its split.
        text: The question, without a placeholder for the picture.
        answer: What the model should say.
        image: The picture's file.
        size: Width and height of the original picture, where the file says so (boxes).
    """

    id: str
    text: str
    answer: str
    image: Path | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Task:
    """One task of the stream: what it is trained and what it is judged on."""

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


def read_tasks(config: DataConfig, seed: int) -> tuple[Task, ...]:
    """All tasks of a stream.

    Args:
        config: Where they are.
        seed: Of the split into training and selection samples.

    Raises:
        DataError: A file, a row or a picture is missing, or a split is empty.
    """
    return tuple(_read_task(config, name, seed) for name in config.tasks)


def ensure_data(config: DataConfig) -> None:
    """Write the generated tasks where a configuration asks for them and there are none yet.

    Raises:
        DataError: There is no data, and none is to be generated.
    """
    root = Path(config.root)
    if (root / "Instructions_Original").is_dir():
        return
    if not config.generate:
        raise DataError(
            f"{root}/Instructions_Original: no such folder; set data.root to CoIN's files, or "
            "data.generate to true for the generated mini CoIN"
        )
    beside = root.with_name(root.name + ".partial")
    write_mini_coin(beside, train=config.train_samples or 0, test=config.test_samples or 0)
    beside.rename(root)


def _read_task(config: DataConfig, name: str, seed: int) -> Task:
    folder = Path(config.root) / "Instructions_Original" / name
    train = read_split(config, folder / "train.json", config.train_samples)
    if config.selection:
        order = list(range(len(train)))
        Random(f"{seed}/{name}/selection").shuffle(order)
        held = max(1, round(config.selection * len(train)))
        selection = tuple(train[i] for i in sorted(order[:held]))
        train = tuple(train[i] for i in sorted(order[held:]))
        if not train:
            raise DataError(
                f"{folder}/train.json: {held} samples, and data.selection {config.selection} takes "
                "them all; none is left to train on"
            )
        if config.evaluate_on == "selection":
            return Task(name, train, selection)
    files = [folder / n for n in TEST_FILES if (folder / n).is_file()]
    if len(files) != 1:
        raise DataError(f"{folder}: needs either of {', '.join(TEST_FILES)}; has {len(files)}")
    return Task(name, train, read_split(config, files[0], config.test_samples))


def read_split(config: DataConfig, file: Path, limit: int | None) -> tuple[Sample, ...]:
    """The first `limit` samples of a file, or all.

    Raises:
        DataError: As in `read_tasks`.
    """
    try:
        rows = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{file}: missing; data.tasks names a task that needs it") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: a list with at least one sample is needed")
    if limit is not None and config.generate and len(rows) < limit:
        raise DataError(
            f"{file}: {len(rows)} samples, {limit} are asked for; remove {config.root}, and they "
            "will be generated"
        )
    images = Path(config.root) / config.images
    samples = tuple(
        _read_row(row, f"{file}, row {number}", images) for number, row in enumerate(rows[:limit])
    )
    seen: set[str] = set()
    for number, sample in enumerate(samples):
        if sample.id in seen:
            raise DataError(f"{file}, row {number}: id {sample.id!r} stands twice in this file")
        seen.add(sample.id)
    return samples


def _read_row(row: Any, where: str, images: Path) -> Sample:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: an object is needed, this is {type(row).__name__}")
    known = next((row[n] for n in ("question_id", "id") if row.get(n) is not None), None)
    if known is None:
        raise DataError(f"{where}: neither id nor question_id; has {', '.join(row)}")
    if "conversations" in row:
        text, answer = _one_turn(row["conversations"], where)
    elif "text" in row and "answer" in row:
        text, answer = row["text"], row["answer"]
    else:
        raise DataError(f"{where}: neither conversations nor text and answer; has {', '.join(row)}")
    if not isinstance(text, str) or not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{where}: question and answer must be text, the answer not empty")
    image = row.get("image")
    if image is not None:
        if not isinstance(image, str):
            raise DataError(f"{where}: image must be a path, this is {image!r}")
        image = images / image
        if not image.is_file():
            raise DataError(f"{where}: picture {image} is missing; see data.images")
    text = text.replace(PLACEHOLDER, "").strip()
    return Sample(str(known), text, answer, image, _size(row.get("size"), where))


def _size(size: Any, where: str) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int for n in size):
        raise DataError(f"{where}: size must be width and height, this is {size!r}")
    return size[0], size[1]


def _one_turn(turns: Any, where: str) -> tuple[Any, Any]:
    match turns:
        case [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]:
            return text, answer
    raise DataError(
        f"{where}: conversations must be one turn, from human and from gpt, each with its value; "
        f"this is {str(turns)[:120]}"
    )
