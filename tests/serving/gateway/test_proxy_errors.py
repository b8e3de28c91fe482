"""What Ray's proxy says in plain text reaches clients as OpenAI's error object."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmoe.serving.gateway.proxy_errors import ProxyErrors


def answered(app: ASGIApp, path: str = "/v1/models") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request to an app behind the middleware."""
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    asyncio.run(ProxyErrors(app)(scope, receive, send))
    start, *bodies = messages
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert [each.get("more_body", False) for each in bodies] == [True] * (len(bodies) - 1) + [False]
    return start["status"], headers, b"".join(each["body"] for each in bodies)


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """As the proxy where a gateway was lost before it answered."""


async def broken_off(scope: Scope, receive: Receive, send: Send) -> None:
    """As the proxy where a gateway was lost amid a stream."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})


def test_a_request_whose_gateway_was_lost_may_be_tried_again() -> None:
    status, headers, body = answered(silent)
    assert (status, headers["content-type"]) == (503, "application/json")
    assert int(headers["retry-after"]) >= 1
    assert int(headers["content-length"]) == len(body)
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("server_error", "away")


def test_a_stream_whose_gateway_was_lost_ends_with_an_error() -> None:
    status, _, body = answered(broken_off)
    first, last, rest = body.decode().split("\n\n")
    assert (status, first, rest) == (200, "data: {}", "")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "away"


@pytest.mark.parametrize("status", [404, 408, 429, 499, 500, 503])
def test_plain_text_becomes_an_error_object_of_the_same_status(status: int) -> None:
    found, headers, body = answered(PlainTextResponse("Actor 1 died", status))
    assert (found, headers["content-type"]) == (status, "application/json")
    assert json.loads(body)["error"]["message"]
    assert b"Actor" not in body, "clients hear nothing of the inside"
    assert ("retry-after" in headers) == (status in (429, 503))


def test_how_long_to_wait_is_as_ray_says() -> None:
    response = PlainTextResponse("full", 503, {"retry-after": "7"})
    assert answered(response)[1]["retry-after"] == "7"


@pytest.mark.parametrize(
    "response",
    [
        PlainTextResponse("figures"),
        JSONResponse({"error": {"message": "no such model"}}, 404),
        Response(status_code=204),
    ],
)
def test_what_a_gateway_says_is_passed_on(response: Response) -> None:
    status, _, body = answered(response)
    assert (status, body) == (response.status_code, response.body)


def test_the_proxy_s_own_routes_stay_as_they_are() -> None:
    status, _, body = answered(PlainTextResponse("draining", 503), "/-/healthz")
    assert (status, body) == (503, b"draining")
