"""The gateway's border: who may ask, how many at a time, how much, for how long; and refusals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.keys import Keys
from cmoe.serving.settings import LimitsConfig

logger = logging.getLogger("ray.serve")
DRAINED = 4  # times the limit: so much of a body is read and dropped, that its sender hears why


class Place:
    """A request's place among those in flight.

    Args:
        deadline: When its answer must have ended, by the loop's clock.
        left: Called once, when the place is free again.

    Attributes:
        kept: Whether whoever sends the answer leaves the place, and not the route.
    """

    def __init__(self, deadline: float, left: Callable[[], None]) -> None:
        self.deadline, self.kept = deadline, False
        self._calls: list[Callable[[], object]] = [left]

    def leaving(self, call: Callable[[], object]) -> None:
        """Call something as well when the place is left. Cancelling what has ended does nothing."""
        self._calls.append(call)

    def leave(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            call()


class HeldStream(StreamingResponse):
    """A stream whose request keeps its place until the last byte, or until the client has gone."""

    def __init__(self, content: AsyncIterator[str], leave: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


class Border:
    """What every request passes before it is looked into.

    Args:
        limits: Of a request, and of those in flight.
        keys: Who may ask.
        count: Told the status of every request that ends here.
    """

    def __init__(self, limits: LimitsConfig, keys: Keys, count: Callable[[int], None]) -> None:
        self._limits, self._keys, self._count = limits, keys, count
        self._in_flight = 0

    @asynccontextmanager
    async def answering(self, request: Request) -> AsyncIterator[Place]:
        """Who may not ask is told so; the rest has a place for a time, or is told to come back."""
        place: Place | None = None
        try:
            self.admit(request)
            if self._in_flight >= self._limits.in_flight:
                raise _busy()
            self._in_flight += 1
            deadline = asyncio.get_running_loop().time() + self._limits.deadline_s
            place = Place(deadline, self._left)
            async with asyncio.timeout_at(deadline):
                yield place
        except Exception as error:
            refusal = as_refusal(error)
            self._count(refusal.status)
            raise refusal from error
        finally:
            if place is not None and not place.kept:
                place.leave()

    def _left(self) -> None:
        self._in_flight -= 1

    def admit(self, request: Request) -> None:
        """Refuse whoever has no key that is known."""
        client = request.client.host if request.client else None
        self._keys.admit(request.headers.get("authorization"), client)

    async def body(self, request: Request) -> bytes:
        """A request's body; reading ends where it is too large."""
        limit = self._limits.body_bytes
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(415, f"content-type is {kind or 'missing'}; application/json")
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > DRAINED * limit:
            raise _too_large(limit)
        body, size = bytearray(), 0
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                body += part
            elif size > DRAINED * limit:
                break
        if size > limit:
            raise _too_large(limit)
        return bytes(body)


def as_refusal(error: Exception) -> RequestError:
    """What a client is told of an error; nothing of the inside is."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BackPressureError):
        return _busy()
    if isinstance(error, ClientDisconnect):
        return RequestError(499, "the client has gone")
    if isinstance(error, TimeoutError):
        return RequestError(504, "the answer took too long", code="timeout")
    logger.error("a request failed: %r", error)
    return RequestError(503, "no replica could answer; try again", code="away", retry_after=5)


async def refused(_: Request, error: Exception) -> Response:
    """An error as OpenAI's clients read it."""
    refusal = as_refusal(error)
    return JSONResponse(refusal.body(), refusal.status, refusal.headers())


async def not_found(request: Request, error: Exception) -> Response:
    """A route that isn't there, or not by that method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = f"{request.method} {request.url.path}: {error}"
    return await refused(request, RequestError(status, message))


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit:,} bytes", code="body_too_large")


def _busy() -> RequestError:
    return RequestError(429, "too many requests at a time", code="busy", retry_after=1)
