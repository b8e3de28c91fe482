"""What Ray's HTTP proxy does for us: limits of connections and headers, and readable errors.

Ray's proxy and the gateway see a request once its headers are complete. Before that, uvicorn takes
any number of bytes for any time. Ray calls `set_up` where a proxy starts, if the variable
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it, as `cmoe.serving.launch` sees to.
"""

from __future__ import annotations

import asyncio
import json
from typing import ClassVar

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.limits import CONNECTIONS, HEAD_BYTES, HEAD_S
from cmoe.serving.gateway.proxy_errors import ProxyErrors

LINGER_S = 3.0  # in which a refused client may go on sending, and so reads why
RAYS_OWN = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
"""Headers by which a client would set Ray's own limits."""


def set_up() -> list[Middleware]:
    """Make uvicorn's servers in this process keep the limits; what the proxy puts around itself."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:BoundedProtocol"
    return [Middleware(ProxyErrors)]


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a limited head, trailers and chunk extensions, on limited connections."""

    _idle: ClassVar[dict[BoundedProtocol, None]] = {}  # without a request, the longest first
    _timer: asyncio.TimerHandle | None = None
    _silent = 0  # bytes since the last one of a body
    _head = 0  # bytes of the head so far, as far as it was read
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) > CONNECTIONS:
            self._make_room()
        self._idle[self] = None

    def _make_room(self) -> None:
        oldest = next(iter(self._idle), None)
        if oldest is not None:
            oldest.transport.close()
            oldest.connection_lost(None)  # the loop tells it only later, and counts it until then
        else:
            message = f"all {CONNECTIONS:,} connections have a request under way; try again"
            self._refused = True
            self.transport.write(_response(RequestError(503, message, code="busy", retry_after=1)))
            self.transport.close()  # at once: those that are refused are a flood

    def connection_lost(self, exc: Exception | None) -> None:
        if self not in self.connections:
            return
        self._idle.pop(self, None)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._silent += len(data)
        super().data_received(data)
        if self._silent > HEAD_BYTES:
            self._refuse_large()

    def send_400_response(self, msg: str) -> None:
        self._refuse(RequestError(400, msg))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value)
        if name.lower() not in RAYS_OWN and self._head <= HEAD_BYTES:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._idle.pop(self, None)
        if self._head > HEAD_BYTES:
            self._refuse_large()
        elif not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._silent = 0
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        follows = bool(self.pipeline)
        super().on_response_complete()
        if not follows and not self.transport.is_closing():
            self._idle[self] = None

    def _expect_head(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEAD_S, self._refuse_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _refuse_large(self) -> None:
        self._refuse(
            RequestError(
                431,
                f"the request has more than {HEAD_BYTES:,} bytes of headers",
                code="headers_too_large",
            )
        )

    def _refuse_late(self) -> None:
        if self._silent:
            message = f"the headers took longer than {HEAD_S:g} s"
            self._refuse(RequestError(408, message, code="headers_too_slow"))
        else:  # nobody has asked for anything
            self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Answer, and close the connection a little later: at once, the answer would be lost."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_response(error))
        self.loop.call_later(LINGER_S, self.transport.close)


def _response(error: RequestError) -> bytes:
    """An error as the last response of a connection."""
    body = json.dumps(error.body()).encode()
    again = b"" if error.retry_after is None else b"retry-after: %d\r\n" % error.retry_after
    return (
        STATUS_LINE[error.status]
        + b"content-type: application/json\r\nconnection: close\r\n"
        + again
        + b"content-length: %d\r\n\r\n" % len(body)
        + body
    )
