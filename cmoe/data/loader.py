"""Batches made ahead of the model, by a thread or by processes that live as long as the loader."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from multiprocessing import forkserver
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cmoe.data.batches import Collator
from cmoe.data.samples import Sample

Kind = Literal["training", "prompts"]
"""What a batch holds: whole conversations with labels, or prompts to be answered."""

Batch = dict[str, Tensor]

AHEAD = 2
"""Batches that the thread makes beyond the one in use: one is ready while it makes another."""

BEGUN: Literal["forkserver"] = "forkserver"

IMPORTED = (__name__, "transformers.processing_utils", "transformers.tokenization_utils_base")
"""What takes a process seconds to import, and is imported once for all."""


@dataclass(frozen=True)
class _Request:
    """A batch that is asked for."""

    kind: Kind
    samples: list[Sample]

    def made(self, collator: Collator) -> Batch:
        if self.kind == "training":
            return collator.training(self.samples)
        return collator.prompts(self.samples)


class Loader:
    """Makes batches ahead while the model computes.

    Args:
        collator: Makes a batch of samples.
        workers: Processes that do so; with 0 a thread does.
    """

    def __init__(self, collator: Collator, workers: int = 0) -> None:
        self._pass = 0
        self._makers: _Makers = _Processes(collator, workers) if workers else _Thread(collator)

    def batches(
        self, kind: Kind, samples: Sequence[Sample], numbers: Sequence[Sequence[int]]
    ) -> Iterator[Batch]:
        """Batches in the order asked for, one pass at a time: the next call ends this one.

        Args:
            kind: What they hold.
            samples: What the numbers point at.
            numbers: Of the samples of each batch.

        Raises:
            DataError: A sample can't be used; as the collator's method of that name.
            RuntimeError: Another pass has begun meanwhile, or a process has ended; names its pid.
        """
        self._pass += 1
        requests = (_Request(kind, [samples[n] for n in batch]) for batch in numbers)
        return self._while_latest(self._pass, self._makers.batches(requests, len(numbers)))

    def _while_latest(self, number: int, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of a pass. Another one takes its makers, and would end it in silence."""
        while True:
            if self._pass != number:
                raise RuntimeError("another pass of this loader has begun; it needs its own loader")
            try:
                yield next(batches)
            except StopIteration:
                return


class _Makers(Protocol):
    """What makes a loader's batches."""

    def batches(self, requests: Iterator[_Request], count: int) -> Iterator[Batch]:
        """So many batches in the order of the requests; the first ones are begun at once."""
        ...


class _Thread:
    """One thread, which makes batch after batch: their order and their bits are the caller's own.

    It has a collator of its own, as a tokenizer must not be set up by two threads at once. It ends
    when nobody holds this object any more.
    """

    def __init__(self, collator: Collator) -> None:
        self._collator = deepcopy(collator)
        self._pinned = torch.cuda.is_available()
        self._made: deque[Future[Batch]] = deque()
        if self._pinned:  # a new thread would pin memory for the first GPU, whichever is used
            device = torch.cuda.current_device()
            self._thread = ThreadPoolExecutor(1, "loader", torch.cuda.set_device, (device,))
        else:
            self._thread = ThreadPoolExecutor(1, "loader")

    def batches(self, requests: Iterator[_Request], count: int) -> Iterator[Batch]:
        _cancel(self._made)
        self._made = deque(self._begun(requests, AHEAD))
        return self._taken(self._made, requests)

    def _taken(self, made: deque[Future[Batch]], requests: Iterator[_Request]) -> Iterator[Batch]:
        try:
            while made:
                batch = made.popleft().result()
                made.extend(self._begun(requests, 1))
                yield batch
        finally:
            _cancel(made)

    def _begun(self, requests: Iterator[_Request], count: int) -> Iterator[Future[Batch]]:
        return (self._thread.submit(self._make, request) for request in islice(requests, count))

    def _make(self, request: _Request) -> Batch:
        batch = request.made(self._collator)
        return {name: t.pin_memory() for name, t in batch.items()} if self._pinned else batch


def _cancel(made: deque[Future[Batch]]) -> None:
    """Make no more of a pass that was left; what is under way is made to its end."""
    while made:
        made.pop().cancel()


class _Processes:
    """Processes, begun here and then never again; they come of one that has imported everything."""

    def __init__(self, collator: Collator, workers: int) -> None:
        self._requests = _Requests()
        self._loader = DataLoader(
            _Collated(collator),
            batch_sampler=self._requests,  # type: ignore[arg-type]
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            num_workers=workers,
            multiprocessing_context=BEGUN,
            persistent_workers=True,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # for its seeds, which nobody uses
        )
        iter(self._loader)

    def batches(self, requests: Iterator[_Request], count: int) -> Iterator[Batch]:
        self._requests.latest, self._requests.count = requests, count
        return iter(self._loader)


class _Requests:
    """In the place of a batch sampler: what each batch of the latest pass is to be made of."""

    latest: Iterator[_Request] = iter(())
    count = 0

    def __iter__(self) -> Iterator[_Request]:
        return self.latest

    def __len__(self) -> int:
        return self.count


class _Collated(Dataset[Any]):
    """In the place of a data set: makes a batch of a request."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def __getitems__(self, request: _Request) -> Batch:
        return request.made(self._collator)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def prepare(workers: int) -> None:
    """Begin the imports of a loader's processes, if it will have any, while the caller goes on.

    They are forked from one that computes nothing and is on no GPU.
    """
    if workers:
        multiprocessing.get_context(BEGUN).set_forkserver_preload([*IMPORTED])
        forkserver.ensure_running()
