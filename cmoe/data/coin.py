"""A stream's tasks: CoIN's, the user's own, and what was prepared of them.

<root>/Instructions_Original/<Task>/train.json, test.json or val.json: a list of questions per
split, with pictures under one folder; or <root>/manifest.json (`shards`). The files of the user's
own tasks are those that `data.own` names (`formats`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Protocol

from cmoe.common.errors import DataError
from cmoe.data.boxes import Size
from cmoe.data.formats.coin_rows import coin_rows
from cmoe.data.formats.documents import read_document
from cmoe.data.formats.own_rows import OwnRows
from cmoe.data.formats.parsed import usable
from cmoe.data.image_limits import ImageLimits
from cmoe.data.images import image_size
from cmoe.data.paraphrases import Paraphrased, original
from cmoe.data.row_rules import BaseRule, RowRule, Split
from cmoe.data.samples import Sample, Task
from cmoe.data.settings import DataConfig
from cmoe.data.shards import (
    StoredSamples,
    find_root,
    read_manifest,
    read_rows,
    require_usable_rows,
)

INSTRUCTIONS = "Instructions_Original"
_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train.json",),
    "test": ("test.json", "val.json"),
}


def read_tasks(
    config: DataConfig,
    seed: int,
    *,
    base: BaseRule | None = None,
    least: int = 1,
    say: Callable[[str], None] | None = None,
) -> tuple[Task, ...]:
    """All tasks of a stream, from their files or from what was prepared of them.

    Args:
        config: Where they are.
        seed: Of the split into training and selection samples.
        base: What the rows are for. None where that was seen to before: then prepared rows aren't
            read through, either.
        least: Training samples that each task needs.
        say: Told of each file of the user's own tasks, which format it has.

    Raises:
        DataError: A file, a row or a picture is missing or can't be used, or a split has too few.
    """
    root = find_root(config.root)
    manifest = read_manifest(root)
    files = _Files(config, base or BaseRule(), say=say)
    stored = _Prepared(config, root, manifest, base) if manifest else None

    def source(task: str) -> Source:
        """What was prepared, or the files; of own tasks they may be beside what was prepared."""
        if stored is None or (task in config.own and task not in stored.manifest["tasks"]):
            return files
        return stored

    return tuple(_read_task(config, source(name), name, seed, least) for name in config.tasks)


def _read_task(config: DataConfig, source: Source, name: str, seed: int, least: int) -> Task:
    train: Sequence[Sample] = source.split(name, "train", config.train_samples)
    held = held_out(len(train), config, name)
    require_enough(len(train) - held, least, config, name)
    judged: Sequence[Sample] = ()
    if held:
        order = list(range(len(train)))
        Random(f"{seed}/{name}/selection").shuffle(order)
        judged = picked(train, sorted(order[:held]))
        train = picked(train, sorted(order[held:]))
    if config.evaluate_on == "test":
        judged = source.split(name, "test", config.test_samples)
    else:
        judged = told_apart(judged)
    if config.paraphrase:
        how = f"{seed}/{name}/paraphrase"
        train = Paraphrased(train, config.paraphrase, how, instructed=True)
    return Task(name, train, judged, config.scorer(name))


def held_out(samples: int, config: DataConfig, name: str) -> int:
    """How many of a task's training samples are its selection.

    Raises:
        DataError: It would be all of them.
    """
    if not config.selection:
        return 0
    held = max(1, round(config.selection * samples))
    if held == samples:
        raise DataError(
            f"{config.root}, {name}: {held} training samples, and data.selection "
            f"{config.selection} takes them all; none is left to train on"
        )
    return held


def require_enough(samples: int, least: int, config: DataConfig, name: str) -> None:
    """Refuse a task with too few samples to be trained on.

    Raises:
        DataError: Says how many are needed.
    """
    if samples < least:
        held = f", without the data.selection of {config.selection}" if config.selection else ""
        raise DataError(
            f"{config.root}, {name}: {samples} training samples{held}; this method needs at least "
            f"{least} of each task, to fit its locator"
        )


def told_apart(selection: Sequence[Sample]) -> Sequence[Sample]:
    """A selection whose ids are unique, as those of a test are: answers are kept by them.

    Training samples may share an id, which is the picture's in LLaVA's files. The second of them
    is named `<id>#2`, and so on.
    """
    ids = selection.ids() if isinstance(selection, StoredSamples) else [s.id for s in selection]
    taken = set(ids)
    if len(taken) == len(selection):
        return selection
    seen: Counter[str] = Counter()

    def renamed(sample: Sample) -> Sample:
        seen[sample.id] += 1
        number = seen[sample.id]
        if number == 1:
            return sample
        while (name := f"{sample.id}#{number}") in taken:
            number += 1
        taken.add(name)
        return replace(sample, id=name)

    return tuple(map(renamed, selection))


def lies_below(task: Task, root: str) -> bool:
    """Whether all that a task's samples don't hold themselves is images in files below a folder."""
    splits = [original(split) for split in (task.train, task.test)]
    if any(isinstance(split, StoredSamples) for split in splits):
        return False
    prefix = f"{Path(root)}{os.sep}"
    images = (image for split in splits for sample in split for image in sample.images)
    return all(isinstance(image, Path) and str(image).startswith(prefix) for image in images)


def picked(samples: Sequence[Sample], numbers: Sequence[int]) -> Sequence[Sample]:
    """Some of the samples, in the order given; stored ones stay where they are."""
    if isinstance(samples, StoredSamples):
        return samples.select(numbers)
    return tuple(samples[i] for i in numbers)


class Source(Protocol):
    """Where samples come from."""

    def split(self, task: str, split: Split, limit: int | None) -> Sequence[Sample]:
        """The first `limit` samples of a task's split, or all; at least one.

        Raises:
            DataError: As in `read_tasks`.
        """
        ...


class _Prepared:
    """Parquet, as `coin_prepare.py` writes it."""

    def __init__(
        self,
        config: DataConfig,
        root: str,
        manifest: Mapping[str, Any],
        base: BaseRule | None,
    ) -> None:
        self.config, self.root, self.manifest, self.base = config, root, manifest, base

    def split(self, task: str, split: Split, limit: int | None) -> Sequence[Sample]:
        rows = read_rows(self.root, self.manifest, task, split)[:limit]
        if not len(rows):
            raise DataError(f"{self.root}: {task}/{split} has no sample; one at least is needed")
        if self.base is not None:  # they may have been prepared for another base
            rule = RowRule(task, split, self.base, self.config.scorer(task))
            require_usable_rows(rows, self.root, self.manifest, rule)
        return rows


class _Files:
    """CoIN's own JSON, and files of the user's own; whether their pictures must be there, too."""

    def __init__(
        self,
        config: DataConfig,
        base: BaseRule,
        *,
        pictures: bool = True,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.base, self.pictures, self.say = config, base, pictures, say

    def split(self, task: str, split: Split, limit: int | None) -> Sequence[Sample]:
        rule = RowRule(task, split, self.base, self.config.scorer(task))
        return self._own(rule, limit) if task in self.config.own else self._coin(rule, limit)

    def _own(self, rule: RowRule, limit: int | None) -> Sequence[Sample]:
        rows = OwnRows(self.config, rule)
        found = islice(rows.parsed(), limit)
        samples = tuple(usable(found, rule, own_size, pictures=self.pictures))
        if not samples:
            raise rows.none()
        if self.say is not None:
            self.say(rows.told(len(samples)))
        return samples

    def _coin(self, rule: RowRule, limit: int | None) -> Sequence[Sample]:
        task, split = rule.task, rule.split
        file = split_file(Path(self.config.root), task, split)
        images = Path(self.config.root) / self.config.images
        rows = read_json(file)
        if limit is not None and self.config.generate and len(rows) < limit:
            raise DataError(
                f"{file}: {len(rows)} samples, {limit} are asked for; remove {self.config.root}, "
                "and they will be generated"
            )
        found = coin_rows(file, rows[:limit], images, rule)
        return tuple(usable(found, rule, own_size, pictures=self.pictures))


def count_rows(
    config: DataConfig, task: str, split: Split, base: Callable[[], BaseRule]
) -> int | None:
    """How many rows of a split a run would read; None where a file of CoIN's isn't there.

    Args:
        config: Where the files are; the pictures needn't be.
        task: One of its tasks.
        split: Of the task.
        base: Gives what the rows are for; asked where there are rows.

    Raises:
        DataError: A row can't be used.
    """
    if task not in config.own and not _split_files(Path(config.root), task, split):
        return None
    limit = config.train_samples if split == "train" else config.test_samples
    return len(_Files(config, base(), pictures=False).split(task, split, limit))


# CoIN's JSON


def split_file(root: Path, task: str, split: Split) -> Path:
    """The file of a task's `train` or `test` split; the second is CoIN's `val` for some tasks.

    Raises:
        DataError: There is none, or more than one.
    """
    files = _split_files(root, task, split)
    if len(files) != 1:
        raise DataError(
            f"{root / INSTRUCTIONS / task}: needs {' or '.join(_NAMES[split])}, one of them; has "
            f"{len(files)}. data.tasks names the task"
        )
    return files[0]


def _split_files(root: Path, task: str, split: Split) -> list[Path]:
    folder = root / INSTRUCTIONS / task
    return [folder / name for name in _NAMES[split] if os.path.exists(folder / name)]


def read_json(file: Path) -> list[Any]:
    """A file's rows, unread.

    Raises:
        DataError: It can't be read, isn't a list in JSON, or is empty.
    """
    rows = read_document(file)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: a list with at least one sample is needed")
    return rows


def own_size(sample: Sample) -> Size | None:
    """The size of a sample's one image, of its header alone; None where it has none or several."""
    return image_size(sample.images[0], ImageLimits()) if len(sample.images) == 1 else None
