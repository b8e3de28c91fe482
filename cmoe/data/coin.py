"""CoIN's tasks, from its own files or from the Parquet that was made of them.

<root>/Instructions_Original/<Task>/train.json, test.json or val.json: a list of questions per
split, with pictures under one folder; or <root>/manifest.json (`shards`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

from cmoe.data.mini import write_mini_coin
from cmoe.data.samples import DataError, Sample, Task, Turn
from cmoe.data.settings import DataConfig
from cmoe.data.shards import HUB, MANIFEST, StoredSamples, find_root, read_manifest, read_rows
from cmoe.storage import WRITTEN, explained, is_remote, require_reachable

INSTRUCTIONS = "Instructions_Original"
PLACEHOLDER = "<image>"
TEST_FILES = ("test.json", "val.json")


def read_tasks(config: DataConfig, seed: int) -> tuple[Task, ...]:
    """All tasks of a stream, from CoIN's own files or from what was prepared of them.

    Args:
        config: Where they are.
        seed: Of the split into training and selection samples.

    Raises:
        DataError: A file, a row or a picture is missing, or a split is empty.
    """
    root = find_root(config.root)
    manifest = read_manifest(root)
    source: Source = _Prepared(config, root, manifest) if manifest else _Files(config)
    return tuple(_read_task(config, source, name, seed) for name in config.tasks)


def ensure_data(config: DataConfig) -> None:
    """Write the generated tasks where a configuration asks for them and there are none yet.

    Raises:
        DataError: There is no data, and none is to be generated.
        StorageError: It can't be read, or not be written.
    """
    if not config.root.startswith(HUB):
        require_reachable(config.root)
    if read_manifest(find_root(config.root)) or (Path(config.root) / INSTRUCTIONS).is_dir():
        return
    if not config.generate or is_remote(config.root):
        raise DataError(
            f"{config.root}: neither {INSTRUCTIONS} nor {MANIFEST} is there; set data.root to "
            "CoIN's files or to what coin_prepare.py made of them, or data.generate to true for "
            "the generated mini CoIN in a folder"
        )
    root = Path(config.root)
    beside = root.with_name(root.name + ".partial")
    with explained(root, WRITTEN):
        write_mini_coin(beside, train=config.train_samples or 0, test=config.test_samples or 0)
        beside.rename(root)


def _read_task(config: DataConfig, source: Source, name: str, seed: int) -> Task:
    train = source.split(name, "train", config.train_samples)
    if config.selection:
        order = list(range(len(train)))
        Random(f"{seed}/{name}/selection").shuffle(order)
        held = max(1, round(config.selection * len(train)))
        if held == len(train):
            raise DataError(
                f"{config.root}, {name}: {held} training samples, and data.selection "
                f"{config.selection} takes them all; none is left to train on"
            )
        selection = picked(train, sorted(order[:held]))
        train = picked(train, sorted(order[held:]))
        if config.evaluate_on == "selection":
            return Task(name, train, selection)
    return Task(name, train, source.split(name, "test", config.test_samples))


def picked(samples: Sequence[Sample], numbers: Sequence[int]) -> Sequence[Sample]:
    """Some of the samples, in the order given; stored ones stay where they are."""
    if isinstance(samples, StoredSamples):
        return samples.select(numbers)
    return tuple(samples[i] for i in numbers)


class Source(Protocol):
    """Where samples come from."""

    def split(self, task: str, split: str, limit: int | None) -> Sequence[Sample]:
        """The first `limit` samples of a task's split, or all; at least one.

        Raises:
            DataError: As in `read_tasks`.
        """
        ...


class _Prepared:
    """Parquet, as `coin_prepare.py` writes it."""

    def __init__(self, config: DataConfig, root: str, manifest: Mapping[str, Any]) -> None:
        self.config, self.root, self.manifest = config, root, manifest

    def split(self, task: str, split: str, limit: int | None) -> Sequence[Sample]:
        rows = read_rows(self.root, self.manifest, task, split)
        if not len(rows):
            raise DataError(f"{self.root}: {task}/{split} has no sample; one at least is needed")
        return rows[:limit]


class _Files:
    """CoIN's own JSON."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def split(self, task: str, split: str, limit: int | None) -> Sequence[Sample]:
        return self._read(split_file(Path(self.config.root), task, split), limit)

    def _read(self, file: Path, limit: int | None) -> tuple[Sample, ...]:
        config, rows = self.config, read_json(file)
        if limit is not None and config.generate and len(rows) < limit:
            raise DataError(
                f"{file}: {len(rows)} samples, {limit} are asked for; remove {config.root}, and "
                "they will be generated"
            )
        images = Path(config.root) / config.images
        samples = []
        seen: set[str] = set()
        for number, row in enumerate(rows[:limit]):
            try:
                sample = parse_row(row, images)
                if sample.id in seen:
                    raise DataError(f"id {sample.id!r} stands twice in this file")
                if isinstance(sample.image, Path) and not sample.image.is_file():
                    raise DataError(f"picture {sample.image} is missing; see data.images")
            except DataError as error:
                raise DataError(f"{file}, row {number}: {error}") from error
            seen.add(sample.id)
            samples.append(sample)
        return tuple(samples)


# CoIN's JSON


def split_file(root: Path, task: str, split: str) -> Path:
    """The file of a task's `train` or `test` split; the second is CoIN's `val` for some tasks.

    Raises:
        DataError: There is none, or more than one.
    """
    folder = root / INSTRUCTIONS / task
    names = ("train.json",) if split == "train" else TEST_FILES
    files = [folder / n for n in names if (folder / n).is_file()]
    if len(files) != 1:
        raise DataError(
            f"{folder}: needs {' or '.join(names)}, one of them; has {len(files)}. data.tasks "
            "names the task"
        )
    return files[0]


def read_json(file: Path) -> list[Any]:
    """A file's rows, unread.

    Raises:
        DataError: It isn't a list in JSON, or is empty.
    """
    try:
        rows = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: a list with at least one sample is needed")
    return rows


def parse_row(row: Any, images: Path) -> Sample:
    """A row of a training or of a test file; its picture isn't looked for.

    Args:
        row: As JSON has it.
        images: What picture paths are relative to.

    Raises:
        DataError: A field is missing or of the wrong kind.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"an object is needed, this is {type(row).__name__}")
    known = next((row[n] for n in ("question_id", "id") if row.get(n) is not None), None)
    if known is None:
        raise DataError(f"neither id nor question_id; has {', '.join(row)}")
    if "conversations" in row:
        (text, answer), *further = _turns(row["conversations"])
    elif "text" in row and "answer" in row:
        text, answer, further = row["text"], row["answer"], []
    else:
        raise DataError(f"neither conversations nor text and answer; has {', '.join(row)}")
    for question, said in ((text, answer), *further):
        if not isinstance(question, str) or not isinstance(said, str) or not said.strip():
            raise DataError("question and answer must be text, the answer not empty")
    image = row.get("image")
    if image is not None and not _is_below(image):
        raise DataError(f"image must be a path below data.images, this is {image!r}")
    return Sample(
        str(known),
        _without_placeholder(text),
        answer,
        None if image is None else images / image,
        _size(row.get("size")),
        tuple(Turn(_without_placeholder(t), said) for t, said in further),
    )


def _is_below(path: Any) -> bool:
    return isinstance(path, str) and not Path(path).is_absolute() and ".." not in Path(path).parts


def _without_placeholder(text: str) -> str:
    return text.replace(PLACEHOLDER, "").strip()


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int for n in size):
        raise DataError(f"size must be width and height, this is {size!r}")
    return size[0], size[1]


def _turns(turns: Any) -> list[tuple[Any, Any]]:
    """Question and answer of every turn."""
    pairs = []
    if isinstance(turns, list) and turns and len(turns) % 2 == 0:
        for asked, said in zip(turns[::2], turns[1::2], strict=True):
            match asked, said:
                case {"from": "human", "value": text}, {"from": "gpt", "value": answer}:
                    pairs.append((text, answer))
    if not pairs or 2 * len(pairs) < len(turns):
        raise DataError(
            "conversations must be turns from human and from gpt by turns, each with its value; "
            f"this is {str(turns)[:120]}"
        )
    return pairs
