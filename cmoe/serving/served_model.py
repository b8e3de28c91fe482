"""What grows with its store while it is being used: a model that answers, or one that locates."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch

from cmoe.data.padding import batched, pad_token
from cmoe.modeling.front import FrontLocator
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import FLASH
from cmoe.serving.bases import base_of
from cmoe.serving.messages import Location, Prompt
from cmoe.serving.prompts import to_tensors
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store, StoreError
from cmoe.store.model import load_locator, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RunAlone = Callable[[Callable[[], None]], Awaitable[None]]
"""Runs a call while nothing else uses the model."""

Grown = TypeVar("Grown", GrowingVLM, FrontLocator)


async def run_at_once(call: Callable[[], None]) -> None:
    """Runs the call in the event loop: alone, where all that uses the model runs there, too."""
    call()


class Served(Generic[Grown]):
    """A base, and what the primitives of its store add to it.

    Args:
        model: With nothing learned yet.
        processor: The base's.
    """

    def __init__(self, model: Grown, processor: Any) -> None:
        self.model: Grown = model
        self.processor = processor
        self.pad = pad_token(processor.tokenizer)
        self._broken: str | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.model.tasks

    async def grow(self, store: Store, run_alone: RunAlone = run_at_once) -> None:
        """Append the primitives that the store has and this model hasn't.

        Args:
            store: Refreshed by the caller.
            run_alone: Runs the appending.

        Raises:
            StorageError: A primitive can't be read or doesn't fit the model. Those before it are
                appended; it and those behind it wait until the store is mended. Whatever else the
                reading raises has the same effect.
        """
        fresh, error = await asyncio.to_thread(_read_from, store, len(self.tasks))
        if fresh:
            await run_alone(lambda: self._append(fresh, store.url))
        if error is not None:
            raise error

    def _append(self, primitives: Sequence[Primitive], url: str) -> None:
        for primitive in primitives:
            try:
                self.model.append(primitive)
            except ValueError as error:
                raise StoreError(f"{url}: {error}") from error
            except Exception as error:
                self._broken = f"{url}: {error!r}"
                raise StoreError(self._broken) from error

    def locate(self, prompts: Sequence[Prompt]) -> list[Location]:
        """The tasks of prompts, in one pass; without tasks all are unknown."""
        if not self.tasks:
            return [Location(BASE, (), True)] * len(prompts)
        inputs = batched([to_tensors(prompt) for prompt in prompts], self.pad)
        found = self.model.locate({n: t.to(self.model.device) for n, t in inputs.items()})
        return [
            Location(task, tuple(scores), unknown)
            for task, scores, unknown in zip(
                self.model.claimed(found),
                found.scores.tolist(),
                found.unknown.tolist(),
                strict=True,
            )
        ]

    def stuck(self) -> str | None:
        """Why the model can't be used any more: a primitive was appended only in part."""
        return self._broken and f"a primitive was taken in part: {self._broken}"


class ServedModel(Served[GrowingVLM]):
    """A model that answers, and locates."""

    @classmethod
    async def load(cls, store: Store, config: ServeConfig) -> Self:
        """Load a store's base; the model has learned nothing before it grows.

        Raises:
            StoreError: The store was written for another base or by another method.
        """

        def loaded() -> tuple[GrowingVLM, Any]:
            base, processor = _base(store, config, _device(config))
            return load_model(store, base, prefix=0), processor

        model, processor = await asyncio.to_thread(loaded)
        model.reject_unknown = config.reject_unknown
        return cls(model, processor)

    def whose_experts(self, prompt: Prompt, task: int) -> list[float]:
        """As `GrowingVLM.whose_experts`, of one prompt: a share of every task."""
        inputs = {n: t.to(self.model.device) for n, t in to_tensors(prompt).items()}
        shares: list[float] = self.model.whose_experts(inputs, task).tolist()
        return shares


class ServedLocator(Served[FrontLocator]):
    """A model that locates alone: it has the layers that its feature needs."""

    @classmethod
    async def load(cls, store: Store, config: ServeConfig) -> Self:
        """As `ServedModel.load`. What isn't kept doesn't go to the device, unless the base can only
        be made there: quantised, or with FlashAttention.
        """

        def loaded() -> tuple[FrontLocator, Any]:
            named, device = base_of(store, config), _device(config)
            there = named.quantization is not None or named.attention == FLASH
            base, processor = _base(store, config, device if there else "cpu")
            locator = load_locator(store, base)
            if not there:
                base.to(torch.device(device))  # type: ignore[arg-type]
            return locator, processor

        locator, processor = await asyncio.to_thread(loaded)
        locator.reject_unknown = config.reject_unknown
        return cls(locator, processor)


def _read_from(store: Store, start: int) -> tuple[list[Primitive], Exception | None]:
    """The primitives from `start` up to the first that can't be read, and why it can't be."""
    found: list[Primitive] = []
    try:
        for index in range(start, len(store)):
            found.append(store.read(index))
    except Exception as error:
        return found, error
    return found, None


def _device(config: ServeConfig) -> str:
    return config.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _base(store: Store, config: ServeConfig, device: str) -> tuple[PreTrainedModel, Any]:
    named = base_of(store, config)
    return load_base(
        named.path,
        revision=named.revision,
        dtype=getattr(torch, named.dtype),
        device=device,
        pad=named.pad,
        quantization=named.quantization,
        attention=named.attention,
    )
