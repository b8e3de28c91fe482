"""Batches, made ahead by processes that live as long as the loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cmoe.data.batches import Collator
from cmoe.data.samples import Sample

Kind = Literal["training", "prompts"]
"""What a batch holds: whole conversations with labels, or prompts to be answered."""


@dataclass(frozen=True)
class _Request:
    """A batch that a process is asked for."""

    kind: Kind
    samples: list[Sample]


class Loader:
    """Makes batches, in processes of its own or in the place of the caller.

    Args:
        collator: Makes a batch of samples.
        workers: Processes; 0 makes each batch when it is asked for.
    """

    def __init__(self, collator: Collator, workers: int = 0) -> None:
        self._requests = _Requests()
        self._pass = 0
        self._batches = DataLoader(
            _Collated(collator),
            batch_sampler=self._requests,  # type: ignore[arg-type]
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def batches(
        self, kind: Kind, samples: Sequence[Sample], numbers: Sequence[Sequence[int]]
    ) -> Iterator[dict[str, Tensor]]:
        """Batches in the order asked for, one pass at a time: the next call ends this one.

        Args:
            kind: What they hold.
            samples: What the numbers point at.
            numbers: Of the samples of each batch.

        Raises:
            DataError: A sample can't be used; as the collator's method of that name.
            RuntimeError: Another pass has begun meanwhile.
        """
        self._pass += 1
        self._requests.ask(kind, samples, numbers)
        return self._while_latest(self._pass, iter(self._batches))

    def _while_latest(
        self, number: int, batches: Iterator[dict[str, Tensor]]
    ) -> Iterator[dict[str, Tensor]]:
        """The batches of a pass. Another one takes its processes, and would end it in silence."""
        while True:
            if self._pass != number:
                raise RuntimeError("another pass of this loader has begun; it needs its own loader")
            try:
                yield next(batches)
            except StopIteration:
                return


class _Requests:
    """In the place of a batch sampler: what each batch is to be made of."""

    def __init__(self) -> None:
        self.ask("prompts", (), ())

    def ask(self, kind: Kind, samples: Sequence[Sample], numbers: Sequence[Sequence[int]]) -> None:
        self._kind, self._samples, self._numbers = kind, samples, numbers

    def __iter__(self) -> Iterator[_Request]:
        kind, samples, numbers = self._kind, self._samples, self._numbers
        return (_Request(kind, [samples[n] for n in batch]) for batch in numbers)

    def __len__(self) -> int:
        return len(self._numbers)


class _Collated(Dataset[Any]):
    """In the place of a data set: makes a batch of a request."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def __getitems__(self, request: _Request) -> dict[str, Tensor]:
        if request.kind == "training":
            return self._collator.training(request.samples)
        return self._collator.prompts(request.samples)


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
