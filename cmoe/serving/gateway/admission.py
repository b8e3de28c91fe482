"""Admission of requests: who may ask, how many at a time, how much, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cmoe.serving.gateway.bodies import Bodies
from cmoe.serving.gateway.errors import RequestError, too_busy
from cmoe.serving.gateway.failures import to_request_error
from cmoe.serving.gateway.keys import Keys
from cmoe.serving.gateway.limits import LimitsConfig


class Slot:
    """A request's slot among those in flight.

    Args:
        body: The request's body; empty without one.
        deadline: When the answer must have ended, by the event loop's clock.
        on_free: Called once, when the slot is free again.

    Attributes:
        body: As given.
        deadline: As given.
        streaming: Whether a stream holds the slot, so that it stays taken when the route returns.
    """

    def __init__(self, body: bytes, deadline: float, on_free: Callable[[], None]) -> None:
        self.body, self.deadline, self.streaming = body, deadline, False
        self._callbacks: list[Callable[[], object]] = [on_free]

    def on_free(self, call: Callable[[], object]) -> None:
        """Also call this when the slot gets free."""
        self._callbacks.append(call)

    def free(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for call in callbacks:
            call()


class SlotStream(StreamingResponse):
    """Server-sent events that hold a slot until the last byte, or until the client has gone."""

    def __init__(self, content: AsyncIterator[str], slot: Slot, headers: Mapping[str, str]) -> None:
        super().__init__(content, headers=headers, media_type="text/event-stream")
        self._slot = slot
        slot.streaming = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._slot.free()


class Admission:
    """What every request passes before its content is looked at.

    Args:
        limits: The limits of a request, and of those in flight.
        keys: Who may ask.
        refused: Gets the error of every request that ends here.
    """

    def __init__(
        self, limits: LimitsConfig, keys: Keys, refused: Callable[[RequestError], None]
    ) -> None:
        self._limits, self._keys, self._refused = limits, keys, refused
        self._bodies = Bodies(limits)
        self._in_flight = 0

    @asynccontextmanager
    async def slot(self, request: Request) -> AsyncIterator[Slot]:
        """A slot for as long as the context runs, up to the deadline. The body is read before.

        Raises:
            RequestError: The client may not ask, the body is refused, there is no slot, or the
                context raises an error.
        """
        slot: Slot | None = None
        try:
            self.require_key(request)
            self._require_room()
            slot = self._take(await self._bodies.read(request))
            async with asyncio.timeout_at(slot.deadline):
                yield slot
        except Exception as error:
            told = to_request_error(error)
            self._refused(told)
            raise told from error
        finally:
            if slot is not None and not slot.streaming:
                slot.free()

    def _require_room(self) -> None:
        if self._in_flight >= self._limits.in_flight:
            raise too_busy()

    def _take(self, body: bytes) -> Slot:
        """A slot for a request whose body was read; others may have come meanwhile."""
        release = partial(self._bodies.release, body)
        try:
            self._require_room()
        except RequestError:
            release()
            raise
        self._in_flight += 1
        deadline = asyncio.get_running_loop().time() + self._limits.deadline_s
        slot = Slot(body, deadline, self._freed)
        slot.on_free(release)
        return slot

    def _freed(self) -> None:
        self._in_flight -= 1

    def require_key(self, request: Request) -> None:
        """Refuse a client without a key that is known."""
        client = request.client.host if request.client else None
        self._keys.require(request.headers.get("authorization"), client)

    async def require_host(self, request: Request) -> None:
        """Refuse a request for a name that isn't this service's, where no key is needed."""
        self._keys.require_host(request.headers.getlist("host"))
