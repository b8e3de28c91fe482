"""What the deployments say to each other: plain values, as small as may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from cmoe.serving.engines.builtin.engine import Finish, Job

Arrays = Mapping[str, NDArray[Any]]
"""A prompt: a base's inputs for a batch of one."""


def tensors(prompt: Arrays) -> dict[str, torch.Tensor]:
    """A prompt as the model takes it."""
    return {name: torch.from_numpy(array) for name, array in prompt.items()}


@dataclass(frozen=True)
class Located:
    """Where a prompt belongs.

    Attributes:
        task: Index of the primitive that answers; -1 for the base, where no task claims it.
        scores: Of all tasks that the locator's store had; the smallest is the likeliest.
        unknown: Whether no task claims it.
        version: Name of that store's version.
    """

    task: int
    scores: tuple[float, ...]
    unknown: bool
    version: str

    @property
    def nearest(self) -> int:
        """Index of the likeliest task, whether it claims the prompt or not; -1 without tasks."""
        return min(range(len(self.scores)), key=self.scores.__getitem__, default=-1)

    @property
    def posterior(self) -> tuple[float, ...]:
        """Chances of all tasks: the softmax of the negative scores, all tasks alike beforehand."""
        return tuple(torch.tensor(self.scores).neg().softmax(0).tolist())


@dataclass(frozen=True)
class Question:
    """A prompt on its way to an executor.

    Attributes:
        prompt: What is asked.
        task: Index of the primitive that answers; None lets the executor locate it.
        tasks: Primitives that the executor must have.
        tokens: Of the answer at most.
        temperature: See `Job`.
        top_p: See `Job`.
        seed: See `Job`.
        stop: See `Job`.
    """

    prompt: Arrays
    task: int | None
    tasks: int
    tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]

    def job(self, *, stream: bool) -> Job:
        return Job(
            tensors(self.prompt),
            self.task,
            self.tokens,
            self.temperature,
            self.top_p,
            self.seed,
            self.stop,
            stream,
        )


@dataclass(frozen=True)
class Said:
    """A part of an answer, or all of it.

    Attributes:
        text: The part.
        tokens: Of the answer so far.
        finish: Why it ended; None while it goes on.
        failure: Why there will be no more of it.
        located: Where the executor located it, if it had to.
        version: Name of the store's version that the executor has.
    """

    text: str
    tokens: int
    finish: Finish | None
    failure: str | None
    located: Located | None
    version: str
