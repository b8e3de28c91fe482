"""What answers prompts with a store's tasks: the interface of executors.

An executor is a class with `submit`, `grow` and `stuck`, registered by a name (`registry`). Each
replica of a service's deployment `executor` runs one, and knows no more of it than this.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from cmoe.serving.messages import AnswerPart, Location, Prompt, Sampling
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Executor(Protocol):
    """Answers prompts, many at a time, and grows with its store meanwhile.

    Attributes:
        WRITTEN: Whether its prompts are `WrittenPrompt`s, whose pictures it prepares itself.
        SAMPLES: The fields of `Sampling` that it honours beyond `max_tokens`, `temperature`,
            `top_p`, `seed` and `stop`. A request asks for no others.
        tasks: Names of the tasks that it answers with, in the store's order.
        running: Number of answers under way.
        waiting: Number of prompts that wait for a place.
    """

    WRITTEN: ClassVar[bool]
    SAMPLES: ClassVar[frozenset[str]]

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @staticmethod
    def require_servable(base: PretrainedConfig, images: int) -> None:
        """Refuse a base by its configuration alone, before anything is loaded.

        Args:
            base: Its configuration.
            images: That a conversation may have.

        Raises:
            UnservedBaseError: Names the base's type, and why it can't be served.
        """

    @classmethod
    async def load(cls, store: Store, config: ServeConfig) -> Self:
        """An executor that can answer with what the store has.

        Raises:
            StorageError: The store was written for another base, or a part of it can't be read.
            UnservedBaseError: The base can't be served.
        """

    def submit(
        self, prompt: Any, task: int | None, sampling: Sampling, *, stream: bool
    ) -> AsyncGenerator[AnswerPart]:
        """Answer a prompt.

        Args:
            prompt: The base's inputs, a `Prompt`; or a `WrittenPrompt`.
            task: Index of the primitive that answers, -1 for the base alone; None locates the
                prompt, where the store's locator is placed inline.
            sampling: How the answer is sampled.
            stream: Whether the parts are wanted as they come; else each whole answer is one part.

        Yields:
            Parts of the answers, each with its answer's index, in any order until each answer has
            its `finish`. Closing the generator cancels the answers.

        Raises:
            ValueError: The prompt and its longest answer never fit.
        """

    async def grow(self, store: Store) -> None:
        """Answer with the primitives that were committed since, without an interruption.

        Args:
            store: Its log, refreshed by the caller.

        Raises:
            StorageError: A primitive can't be read or doesn't fit. Those before it are taken up.
        """

    def stuck(self) -> str | None:
        """Why this executor has to be started anew; None while it works."""


@runtime_checkable
class LocatingExecutor(Protocol):
    """An executor that can also locate prompts without answering them.

    Where a store's locator is placed inline, its service then has no other locator.
    """

    async def locate(self, prompts: Sequence[Prompt]) -> list[Location]:
        """The prompts' tasks."""


@runtime_checkable
class ExplainingExecutor(Protocol):
    """An executor that can also tell whose experts work on a prompt."""

    async def whose_experts(self, prompt: Prompt, task: int) -> list[float]:
        """The share that each task's experts have in the gates over the prompt's tokens.

        Args:
            prompt: The base's inputs.
            task: Index of the primitive that answers.
        """
