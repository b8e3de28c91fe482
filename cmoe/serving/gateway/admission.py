"""Admission of requests: who may ask, how many at a time, how much, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cmoe.serving.gateway.errors import RequestError, to_request_error, too_busy
from cmoe.serving.gateway.keys import Keys
from cmoe.serving.gateway.limits import DRAINED_BODIES, LimitsConfig


class Slot:
    """A request's slot among those in flight.

    Args:
        deadline: When the answer must have ended, by the event loop's clock.
        on_free: Called once, when the slot is free again.

    Attributes:
        streaming: Whether a stream holds the slot, so that it stays taken when the route returns.
    """

    def __init__(self, deadline: float, on_free: Callable[[], None]) -> None:
        self.deadline, self.streaming = deadline, False
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
    """What every request passes before its content is read.

    Args:
        limits: The limits of a request, and of those in flight.
        keys: Who may ask.
        count: Gets the status of every request that ends here.
    """

    def __init__(self, limits: LimitsConfig, keys: Keys, count: Callable[[int], None]) -> None:
        self._limits, self._keys, self._count = limits, keys, count
        self._in_flight = 0

    @asynccontextmanager
    async def slot(self, request: Request) -> AsyncIterator[Slot]:
        """A slot for as long as the body runs, up to the deadline.

        Raises:
            RequestError: The client may not ask, there is no slot, or the body raises an error.
        """
        slot: Slot | None = None
        try:
            self.require_key(request)
            if self._in_flight >= self._limits.in_flight:
                raise too_busy()
            self._in_flight += 1
            deadline = asyncio.get_running_loop().time() + self._limits.deadline_s
            slot = Slot(deadline, self._freed)
            async with asyncio.timeout_at(deadline):
                yield slot
        except Exception as error:
            told = to_request_error(error)
            self._count(told.status)
            raise told from error
        finally:
            if slot is not None and not slot.streaming:
                slot.free()

    def _freed(self) -> None:
        self._in_flight -= 1

    def require_key(self, request: Request) -> None:
        """Refuse a client without a key that is known."""
        client = request.client.host if request.client else None
        self._keys.require(request.headers.get("authorization"), client)

    async def body(self, request: Request) -> bytes:
        """A request's body; reading stops where it is too large."""
        limit = self._limits.body_bytes
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(415, f"content-type is {kind or 'missing'}; application/json")
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > DRAINED_BODIES * limit:
            raise _too_large(limit)
        body, size = bytearray(), 0
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                body += part
            elif size > DRAINED_BODIES * limit:
                break
        if size > limit:
            raise _too_large(limit)
        return bytes(body)


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit:,} bytes", code="body_too_large")
