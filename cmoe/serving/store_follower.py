"""Keeps a replica up to date with its store, without a restart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from cmoe.common.storage import StorageError
from cmoe.serving.messages import Located, Location
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store, StoreError

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


async def open_store(config: ServeConfig) -> Store:
    """A service's store, with all of its records.

    Raises:
        StorageError: A record can't be read, or the storage doesn't answer within `look_s`.
    """
    try:
        async with asyncio.timeout(config.look_s):
            return await asyncio.to_thread(Store.open, config.store)
    except TimeoutError:
        raise _unanswered(config.store, config.look_s) from None


class StoreFollower:
    """Lets a model or an executor grow with its store: every few seconds, and on demand.

    One look happens at a time. One that doesn't end holds up no one for longer than `look_s`, is
    shown as a refusal meanwhile, and is followed by others once it has ended.

    Args:
        store: What is followed; nobody else refreshes it.
        grower: What grows.
        poll_s: Seconds between two looks for new primitives.
        look_s: Seconds that a look may take.

    Attributes:
        refused: Why a part of the store isn't taken; None where all of it is.
    """

    def __init__(self, store: Store, grower: Grows, poll_s: float, look_s: float) -> None:
        self.refused: str | None = None
        self._store, self._grower, self._poll_s, self._look_s = store, grower, poll_s, look_s
        self._look: asyncio.Task[None] | None = None
        self._begun = self._looked = time.monotonic()  # the last look's beginning; the end of one
        self._polling: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, store: Store, grower: Grows, config: ServeConfig) -> Self:
        """A follower that polls from now on, of a grower that has the whole store.

        Raises:
            StoreError: A part of the store can't be taken.
        """
        follower = cls(store, grower, config.poll_s, config.look_s)
        await follower.catch_up()
        if follower.refused is not None:
            raise StoreError(follower.refused)
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
        """Tasks with their instructions, version, refusal, and the age of the last look that ended,
        for gateways and health checks.
        """
        tasks = self._grower.tasks
        version = asdict(self.version) | {"name": str(self.version)}
        return {
            "tasks": tasks,
            "instructions": [each.instructions for each in self._store.records()[: len(tasks)]],
            "version": version,
            "refused": self.refused,
            "looked_s_ago": round(time.monotonic() - self._looked, 1),
        }

    async def catch_up(self, min_tasks: int | None = None) -> None:
        """Take up what was committed since; with `min_tasks`, only if there are fewer tasks.

        What fails on the way is in `refused`. A look goes on to its end, also where the caller is
        cancelled or has waited for `look_s`.
        """
        for _ in range(2):  # a look that was under way may have begun before what is needed came
            if min_tasks is not None and len(self._grower.tasks) >= min_tasks:
                return
            joined = self._look is not None and not self._look.done()
            if self._look is None or not joined:
                self._begun, self._look = time.monotonic(), asyncio.create_task(self._look_once())
            left = self._begun + self._look_s - time.monotonic()
            await asyncio.wait([self._look], timeout=max(0.0, left))
            if not self._look.done():
                self.refused = str(_unanswered(self._store.url, self._look_s))
            if not joined or not self._look.done():
                return

    async def _look_once(self) -> None:
        refused = await self._refusal(asyncio.to_thread(self._store.refresh))
        # What was read before a broken record can be taken up still.
        self.refused = await self._refusal(self._grower.grow(self._store)) or refused
        self._looked = time.monotonic()

    async def _refusal(self, step: Awaitable[object]) -> str | None:
        """Why a step of a look failed, whatever it raised; None where it didn't."""
        try:
            await step
        except StorageError as error:
            return str(error)
        except asyncio.CancelledError:  # the replica ends
            raise
        except BaseException as error:  # as the reading of a damaged file may raise
            logger.exception("can't look into the store")
            return f"{self._store.url}: {error!r}"
        return None

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self.catch_up()


def _unanswered(url: str, seconds: float) -> StoreError:
    return StoreError(
        f"{url}: reading it hasn't ended in {seconds:g} s; check its disk or the network to it"
    )
