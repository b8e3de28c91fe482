"""Which data a stream is made of, a section of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cmoe.common.bounds import require

TASKS = (
    "ScienceQA",
    "TextVQA",
    "ImageNet",
    "GQA",
    "VizWiz",
    "Grounding",
    "VQAv2",
    "OCRVQA",
)
"""CoIN's, in its order."""


@dataclass(frozen=True)
class DataConfig:
    """The stream's tasks and their files.

    Attributes:
        root: Folder with the data: `Instructions_Original/`, or what `coin_prepare.py` made of it.
            A path, `s3://bucket/prefix`, or `hf://datasets/<owner>/<name>[@<revision>]`.
        images: Folder that the rows' picture paths are relative to; itself relative to `root`.
            Prepared data brings its pictures.
        tasks: The stream's tasks, in the order of learning.
        generate: Write the generated mini CoIN to `root` where nothing is there yet.
        train_samples: Training samples a task at most; null takes all.
        test_samples: Test samples a task at most; null takes all.
        selection: Share of the training samples kept from training, to choose settings on.
        evaluate_on: `test`, or `selection`, which leaves the test files unread.
        paraphrase: Share of the training samples that are asked as people may ask, politely or in
            small letters, between the sample's own instructions; 0 in a benchmark.
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
    paraphrase: float = 0.0
    max_length: int | None = None
    loader_workers: int = 0

    def __post_init__(self) -> None:
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
