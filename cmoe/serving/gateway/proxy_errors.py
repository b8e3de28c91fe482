"""Errors of Ray Serve's HTTP proxy in OpenAI's form: what a client gets where no gateway answers.

The proxy itself answers in plain text, and with status 500 where the gateway of a request was lost.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from http.client import responses

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.protocol import event

OWN_ROUTES = "/-/"
"""The proxy's own routes, which Ray's tools read."""
RETRY_S = 2
"""Seconds after which another gateway may answer; a new one is there after some seconds."""
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class ProxyErrors:
    """Replaces errors in plain text by OpenAI's error object, and ends what a lost gateway began.

    Args:
        app: The proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(OWN_ROUTES):
            await self._app(scope, receive, send)
            return
        response = _Response(send)
        await self._app(scope, receive, response.send)
        await response.end()


class _Response:
    """A response on its way through: passed on as it is, or replaced."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._kind: str | None = None  # the content's type, once the response has begun
        self._ended = self._replaced = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            self._kind = headers.get("content-type", "").partition(";")[0]
            self._replaced = message["status"] >= 400 and self._kind == "text/plain"
            if self._replaced:
                await self._replace(message["status"], headers.get("retry-after"))
                return
        elif message["type"] == "http.response.body":
            if self._replaced:
                return
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def end(self) -> None:
        """Say what happened, where the gateway was lost before the response's end."""
        if self._kind is None:
            await self._replace(HTTPStatus.SERVICE_UNAVAILABLE, None)
        elif self._kind == "text/event-stream" and not (self._ended or self._replaced):
            body = event(_lost().body()).encode()
            await self._send({"type": "http.response.body", "body": body})

    async def _replace(self, status: int, retry_after: str | None) -> None:
        told = _lost() if status in BUSY else RequestError(status, responses.get(status, "refused"))
        body = json.dumps(told.body()).encode()
        headers = MutableHeaders(
            {"content-type": "application/json", "content-length": str(len(body))} | told.headers()
        )
        if retry_after is not None:
            headers["retry-after"] = retry_after
        start = {"type": "http.response.start", "status": status, "headers": headers.raw}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def _lost() -> RequestError:
    return RequestError(503, "no gateway could answer; try again", code="away", retry_after=RETRY_S)
