"""Bodies of requests: read within limits, before a request takes a place."""

from __future__ import annotations

import asyncio

from fastapi import Request

from cmoe.serving.gateway.errors import RequestError, too_busy
from cmoe.serving.gateway.limits import DRAINED_BODIES, MAX_PARTS, LimitsConfig

MARKS = b"{[,:"  # of JSON's parts


class Bodies:
    """The bodies that are being read, and the bytes of those that were.

    Args:
        limits: The limits of a request, and of all bodies together.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._reading: dict[asyncio.Timeout, int] = {}  # bytes of each, the oldest first
        self._kept = 0  # bytes of those that were read

    async def read(self, request: Request) -> bytes:
        """A request's body, empty where its method has none; `release` is told when it may go.

        Raises:
            RequestError: The body is of another kind, too large, of too many parts or too slow; or
                there are too many at a time.
        """
        if request.method != "POST":
            return b""
        self._require_taken(request)
        try:
            async with asyncio.timeout(self._limits.body_s) as until:
                body = await self._read(request, until)
        except TimeoutError as error:
            raise RequestError(
                408,
                f"the body took longer than {self._limits.body_s:g} s, or had taken longest when "
                "others came",
                code="body_too_slow",
            ) from error
        marks = sum(body.count(mark) for mark in MARKS)
        if marks > (most := MAX_PARTS + self._limits.text_bytes):
            self.release(body)
            raise RequestError(
                400,
                f"the body has {marks:,} commas, colons and brackets; at most {most:,}",
                code="bad_json",
            )
        return body

    def release(self, body: bytes) -> None:
        """Hear that a body isn't needed any longer."""
        self._kept -= len(body)

    def _require_taken(self, request: Request) -> None:
        """Refuse a body by what is said of it."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(415, f"content-type is {kind or 'missing'}; application/json")
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > DRAINED_BODIES * self._limits.body_bytes:
            raise self._too_large()

    async def _read(self, request: Request, until: asyncio.Timeout) -> bytes:
        """The body; reading stops where it is too large, and ends where it is given up."""
        body, size, limit = bytearray(), 0, self._limits.body_bytes
        self._reading[until] = 0
        try:
            if len(self._reading) > self._limits.bodies:
                self._give_up_oldest(until)
            async for part in request.stream():
                size += len(part)
                if size <= limit:
                    body += part
                    self._hold(until, len(part))
                elif size > DRAINED_BODIES * limit:
                    break
        finally:
            in_time = self._reading.pop(until, None) is not None
        if not in_time:
            raise TimeoutError
        if size > limit:
            raise self._too_large()
        self._kept += size
        return bytes(body)

    def _hold(self, until: asyncio.Timeout, size: int) -> None:
        """Count a body's further bytes; slower bodies make room for it."""
        if until not in self._reading:
            raise TimeoutError
        self._reading[until] += size
        while self._kept + sum(self._reading.values()) > self._limits.bodies_bytes:
            if not self._give_up_oldest(until):
                raise too_busy()

    def _give_up_oldest(self, but: asyncio.Timeout) -> bool:
        """End the reading that began first, of another body than one; whether there is such."""
        oldest = next((each for each in self._reading if each is not but), None)
        if oldest is None:
            return False
        del self._reading[oldest]
        oldest.reschedule(asyncio.get_running_loop().time())
        return True

    def _too_large(self) -> RequestError:
        limit = self._limits.body_bytes
        return RequestError(413, f"the body is larger than {limit:,} bytes", code="body_too_large")
