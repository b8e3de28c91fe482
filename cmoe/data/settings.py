"""Which data a stream is made of, a section of a run's configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cmoe.common.bounds import require
from cmoe.common.nearest import unknown

SCORERS = {
    "ScienceQA": "scienceqa",
    "TextVQA": "textvqa",
    "ImageNet": "class_name",
    "GQA": "lower_case",
    "VizWiz": "upper_case",
    "Grounding": "box",
    "VQAv2": "upper_case",
    "OCRVQA": "ocr",
}
"""The scorer's name of each registered task; `cmoe.tasks.registry` adds to it."""

TASKS = tuple(SCORERS)
"""CoIN's, in its order."""

COLUMNS = ("id", "question", "answer", "answers", "image")
"""What a table's columns may say."""

_NAME = re.compile(r"\w([\w +.-]*[\w+-])?")  # it names files, folders and Prometheus' labels
_LONGEST_NAME = 80  # bytes: a file's name has 255, and more than a task's name in it


@dataclass(frozen=True)
class OwnTask:
    """A task of the user's own: its files, and what judges it.

    A file is relative to `data.root`, or `hf://datasets/<owner>/<name>[@<revision>]?split=<split>`,
    with `&name=<config>` where the data set has several. Its format is told by its first row.

    Attributes:
        train: File with the rows to train on.
        test: File with the rows to evaluate on.
        scorer: The name of what judges the answers.
        images: Folder that the rows' picture paths are relative to, itself relative to `data.root`;
            null takes `data.images`.
        captions: File with the reference answers of the test rows, as COCO has its captions:
            `{"annotations": [{"image_id", "caption"}]}`, where image 1 is of the first row; null
            takes the rows' own.
        columns: Of a table, where its columns aren't called so: by `id`, `question`, `answer`,
            `answers` and `image` the column's name.
    """

    train: str
    test: str
    scorer: str
    images: str | None = None
    captions: str | None = None
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("train", "test", "scorer"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; a text is needed")
        for name in self.columns:
            if name not in COLUMNS:
                raise ValueError(f"columns names {name!r}; {unknown(name, COLUMNS)}")

    def file(self, split: Literal["train", "test"]) -> str:
        """Where a split's rows are."""
        return self.train if split == "train" else self.test


@dataclass(frozen=True)
class DataConfig:
    """The stream's tasks and their files.

    Attributes:
        root: Folder with the data: `Instructions_Original/`, or what `coin_prepare.py` made of it.
            A path, `s3://bucket/prefix`, or `hf://datasets/<owner>/<name>[@<revision>]`.
        images: Folder that the rows' picture paths are relative to; itself relative to `root`.
            Prepared data brings its pictures.
        tasks: The stream's tasks, in the order of learning. Left out, they are those of `own`, in
            their order, where there are any, and else CoIN's.
        own: Tasks of your own by their names: files in any of the formats, and a scorer.
        generate: Write the generated mini CoIN to `root` where nothing is there yet.
        train_samples: Training samples a task at most; null takes all.
        test_samples: Test samples a task at most; null takes all.
        selection: Share of the training samples kept from training, to choose settings on.
        evaluate_on: `test`, or `selection`, which leaves the test files unread.
        paraphrase: Share of the training samples that are asked as people may ask, politely or in
            small letters, between the sample's own instructions; 0 in a benchmark.
        max_length: Tokens of prompt and answer together; null takes the base's own limit.
        loader_workers: Processes per worker that prepare batches ahead. With 0 one thread does,
            which is enough unless a batch takes longer to prepare than to compute, as of large
            images.
    """

    root: str = "data/coin"
    images: str = "."
    tasks: tuple[str, ...] = TASKS
    own: dict[str, OwnTask] = field(default_factory=dict)
    generate: bool = False
    train_samples: int | None = None
    test_samples: int | None = None
    selection: float = 0.0
    evaluate_on: Literal["test", "selection"] = "test"
    paraphrase: float = 0.0
    max_length: int | None = None
    loader_workers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", {name: _own(name, one) for name, one in self.own.items()})
        if self.own and tuple(self.tasks) == TASKS:  # left out: none of `own` is among them
            object.__setattr__(self, "tasks", tuple(self.own))
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"data.tasks is {list(self.tasks)}; one task or more, each once")
        if not 0 <= self.selection < 1:
            raise ValueError(f"data.selection is {self.selection}; 0 or more, and less than 1")
        if self.evaluate_on == "selection" and not self.selection:
            raise ValueError("data.evaluate_on is selection, but data.selection is 0; try 0.1")
        if not 0 <= self.paraphrase <= 1:
            raise ValueError(f"data.paraphrase is {self.paraphrase}; a share, from 0 to 1")
        require(self, "data", "loader_workers", least=0)
        require(self, "data", "train_samples", "test_samples", "max_length", least=1)
        if self.generate and not (self.train_samples and self.test_samples):
            raise ValueError("data.generate needs data.train_samples and data.test_samples")

    def scorer(self, task: str) -> str:
        """The name of what judges a task; "" where nothing is known to."""
        return self.own[task].scorer if task in self.own else SCORERS.get(task, "")

    @property
    def only_own(self) -> bool:
        """Whether all tasks are the user's own."""
        return all(task in self.own for task in self.tasks)

    def images_of(self, task: str) -> str:
        """The folder that a task's picture paths are relative to; itself relative to `root`."""
        own = self.own.get(task)
        return self.images if own is None or own.images is None else own.images


def _own(name: str, said: Any) -> OwnTask:
    """A task of the user's own, as a parser gives it.

    Raises:
        ValueError: Its name or one of its values can't be.
    """
    if name in SCORERS:
        raise ValueError(
            f"data.own names {name!r}, which is a task already; another name is needed"
        )
    if not _NAME.fullmatch(name) or len(name.encode()) > _LONGEST_NAME:
        raise ValueError(
            f"data.own names {name!r:.120}; letters, digits, and within them . - + and spaces, "
            f"{_LONGEST_NAME} bytes at most"
        )
    try:
        return said if isinstance(said, OwnTask) else OwnTask(**_values(said))
    except ValueError as error:
        raise ValueError(f"data.own.{name}.{error}") from error


def _values(said: Any) -> dict[str, Any]:
    return dict(said) if isinstance(said, Mapping) else vars(said)
