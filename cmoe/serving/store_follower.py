"""Keeps a replica up to date with its store, without a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from cmoe.common.storage import StorageError
from cmoe.serving.messages import Located, Location
from cmoe.store.log import Store

logger = logging.getLogger("ray.serve")


class Grows(Protocol):
    """What takes up a store's primitives while it is being used."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks whose primitives it has."""

    async def grow(self, store: Store) -> None:
        """Take up the primitives that the store has and this hasn't; a StorageError says why some
        are not taken.
        """


@dataclass(frozen=True)
class Version:
    """A prefix of a store: a number of primitives, and the digest of the last one's record."""

    tasks: int
    digest: str

    def __str__(self) -> str:
        return f"{self.tasks}-{self.digest[:12]}"


def readable(url: str) -> Store:
    """A store with the records that can be read.

    Raises:
        StorageError: There is no store.
    """
    store = Store.follow(url)
    with suppress(StorageError):  # a follower reports it
        store.refresh()
    return store


class StoreFollower:
    """Lets a model or an executor grow with its store: every few seconds, and on demand.

    Args:
        store: What is followed; nobody else refreshes it.
        grower: What grows.
        poll_s: Seconds between two looks for new primitives.

    Attributes:
        refused: Why a part of the store isn't taken; None where all of it is.
    """

    def __init__(self, store: Store, grower: Grows, poll_s: float) -> None:
        self.refused: str | None = None
        self._store, self._grower, self._poll_s = store, grower, poll_s
        self._growing = asyncio.Lock()
        self._polling: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, store: Store, grower: Grows, poll_s: float) -> Self:
        """A follower that is up to date, and polls from now on."""
        follower = cls(store, grower, poll_s)
        await follower.catch_up()
        follower._polling = asyncio.create_task(follower._poll())
        return follower

    @property
    def version(self) -> Version:
        """What the grower has of the store."""
        return self.version_of(len(self._grower.tasks))

    def version_of(self, count: int) -> Version:
        """The store's first `count` primitives."""
        header, records = self._store.header, self._store.records()
        return Version(count, records[count - 1].digest if count else header.digest)

    def versioned(self, locations: Sequence[Location]) -> list[Located]:
        """Locations, each with the version that it was found among."""
        return [Located(each, str(self.version_of(len(each.scores)))) for each in locations]

    def state(self) -> dict[str, Any]:
        """Tasks, version and refusal, for health checks and the list of models."""
        version = asdict(self.version) | {"name": str(self.version)}
        return {"tasks": self._grower.tasks, "version": version, "refused": self.refused}

    async def catch_up(self, min_tasks: int | None = None) -> None:
        """Take up what was committed since; with `min_tasks`, only if there are fewer tasks.

        It goes on to its end, also where the caller is cancelled.
        """
        if not self._has(min_tasks):
            await asyncio.shield(self._catch_up(min_tasks))

    def _has(self, min_tasks: int | None) -> bool:
        return min_tasks is not None and len(self._grower.tasks) >= min_tasks

    async def _catch_up(self, min_tasks: int | None) -> None:
        async with self._growing:
            if self._has(min_tasks):
                return
            refused = None
            try:
                await asyncio.to_thread(self._store.refresh)
            except StorageError as error:  # what was read before it can be taken up still
                refused = str(error)
            try:
                await self._grower.grow(self._store)
            except StorageError as error:
                refused = str(error)
            self.refused = refused

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.catch_up()
            except Exception:  # of a storage's own kind: the next look may succeed
                logger.exception("can't look into the store")
