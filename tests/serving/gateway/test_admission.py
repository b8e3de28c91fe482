"""Bodies, headers and names are bounded before a request takes a place: on a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import Depends, FastAPI, Request
from support.jobs import until
from support.ports import free_port
from support.raw_http import Answer, answer, asked, connection, head, posted

from cmoe.serving.gateway import proxy
from cmoe.serving.gateway.admission import Admission
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.failures import error_response
from cmoe.serving.gateway.keys import Keys
from cmoe.serving.gateway.limits import HEAD_BYTES, LimitsConfig
from cmoe.serving.settings import AuthConfig

LIMITS = LimitsConfig(
    in_flight=2, bodies=4, body_s=2.0, body_bytes=100_000, bodies_bytes=250_000, deadline_s=5.0
)
PATH = "/v1/chat/completions"


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The URL of an application behind the protocol that Ray's proxies get."""
    port = free_port()
    config = uvicorn.Config(app, port=port, http=proxy.BoundedProtocol, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def gateway(limits: LimitsConfig = LIMITS, **auth: Any) -> FastAPI:
    """What admits requests, before an answer that says how large the body was.

    An answer to `{"hold": 1}` takes its time.
    """
    keys = Keys.of(AuthConfig(required=False, **auth))
    admission = Admission(limits, keys, lambda _: None)
    app = FastAPI(dependencies=[Depends(admission.require_host)])
    app.add_exception_handler(RequestError, error_response)

    async def size(request: Request) -> int:
        async with admission.slot(request) as slot:
            if slot.body == b'{"hold": 1}':
                await asyncio.sleep(1)
            return len(slot.body)

    app.post(PATH)(size)
    app.get("/")(size)
    return app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(gateway()) as found:
        yield found


def said(found: Answer) -> str:
    """An error's code, in OpenAI's form."""
    error = found.body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return str(error["code"])


def good(url: str, size: int = 1000) -> Answer:
    return asked(url, posted(size), json.dumps("x" * (size - 2)).encode())


# Bodies


def test_slow_bodies_take_no_place(url: str) -> None:
    """Many more than may be read at a time: whoever sends at once is answered at once."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connection(url)) for _ in range(40)]
        for each in slow:
            each.sendall(posted(5000) + b'"x')
        begun = time.monotonic()
        for _ in range(20):
            assert good(url) == Answer(200, 1000)
        assert time.monotonic() - begun < LIMITS.body_s + 3
        for each in slow:
            found = answer(each)
            assert (found.status, said(found)) == (408, "body_too_slow")


def test_a_body_that_comes_in_pieces_is_taken(url: str) -> None:
    pieces = [b'"', *[b"x" * 10] * 20, b'"']
    assert asked(url, posted(202), *pieces, pause_s=0.02) == Answer(200, 202)


def test_bodies_that_drip_are_given_up_in_time(url: str) -> None:
    begun = time.monotonic()
    found = asked(url, posted(5000), *[b"x"] * 8, pause_s=0.4)
    assert (found.status, said(found)) == (408, "body_too_slow")
    assert time.monotonic() - begun < LIMITS.body_s + 5


def test_all_bodies_together_are_bounded(url: str) -> None:
    """Slow ones that hold as much as may be held make room for who comes."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connection(url)) for _ in range(3)]
        for each in slow:
            each.sendall(posted(90_000) + b"x" * 80_000)
        assert good(url, 90_000) == Answer(200, 90_000)
        assert [answer(each).status for each in slow] == [408] * 3
    for _ in range(5):  # nothing is counted of those that have gone
        assert good(url, 99_000) == Answer(200, 99_000)


def test_a_full_gateway_says_so_before_it_reads_a_body(url: str) -> None:
    hold = b'{"hold": 1}'
    with ExitStack() as stack:
        held = [stack.enter_context(connection(url)) for _ in range(LIMITS.in_flight)]
        for each in held:
            each.sendall(posted(len(hold)) + hold)
        time.sleep(0.3)
        found = asked(url, posted(50_000))
        assert (found.status, said(found)) == (429, "busy")
        assert [answer(each).status for each in held] == [200] * LIMITS.in_flight
    assert good(url) == Answer(200, 1000)


@pytest.mark.parametrize(
    "body",
    [b"[" + b"{}," * 30_000 + b"{}]", b"[" * 90_000, b'{"a":' * 20_000, b"[" + b"0," * 45_000],
)
def test_a_body_of_very_many_parts_is_refused_before_it_is_parsed(url: str, body: bytes) -> None:
    found = asked(url, posted(len(body)), body)
    assert (found.status, said(found)) == (400, "bad_json")
    assert "commas, colons and brackets; at most" in found.body["error"]["message"]


def test_a_body_that_is_larger_than_said_is_cut(url: str) -> None:
    found = asked(url, posted(100_001), b"x" * 100_001)
    assert (found.status, said(found)) == (413, "body_too_large")
    chunked = head(PATH, "Content-Type: application/json", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    found = asked(url, chunked, *[chunk] * 12)
    assert found.status in (0, 413)
    assert good(url) == Answer(200, 1000)


# Heads

NO_END = b"GET / HTTP/1.1\r\nHost: localhost\r\nA: "
LARGE: dict[str, Callable[[], list[bytes]]] = {
    "one header": lambda: [head("/", "A: " + "x" * 100_000)],
    "a header without an end": lambda: [NO_END, *[b"x" * 2**20] * 32],
    "many headers": lambda: [head("/", *[f"A{i}: {i}" for i in range(20_000)])],
    "a long name": lambda: [head("/", "a" * 100_000 + ": x")],
    "a long line": lambda: [head("/" + "x" * 100_000)],
    "trailers": lambda: [
        head(PATH, "Content-Type: application/json", "Transfer-Encoding: chunked"),
        b"2\r\n{}\r\n0\r\n",
        b"A: " + b"x" * 2**20,
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", LARGE)
def test_a_large_head_is_refused(url: str, what: str) -> None:
    found = asked(url, *LARGE[what]())
    if what != "trailers":  # whose sender may have been answered before
        assert (found.status, said(found)) == (431, "headers_too_large")
        assert f"{HEAD_BYTES:,} bytes" in found.body["error"]["message"]
    assert good(url) == Answer(200, 1000)


def test_a_usual_head_is_taken_again_and_again_on_one_connection(url: str) -> None:
    get = head("/", "A: " + "x" * 20_000, "Cookie: " + "y" * 8000)
    with connection(url) as opened:
        for _ in range(5):
            opened.sendall(get)
            assert answer(opened) == Answer(200, 0)
        opened.sendall(posted(90_000) + b" " * 90_000)
        assert answer(opened) == Answer(200, 90_000)
        opened.sendall(get + get)
        assert answer(opened).status == 200


def test_a_head_that_drips_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "HEAD_S", 0.5)
    found = asked(url, *[b"GET / HTTP/1.1\r\n", *[b"A: b\r\n"] * 5], pause_s=0.2)
    assert (found.status, said(found)) == (408, "headers_too_slow")
    assert asked(url, b"").status == 0, "who says nothing is closed"
    assert good(url) == Answer(200, 1000)


def test_idle_connections_make_room_and_busy_ones_keep_theirs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "CONNECTIONS", 3)
    with ExitStack() as stack:
        first, second, *busy = (stack.enter_context(connection(url)) for _ in range(4))
        assert first.recv(1) == b"", "without a request for longest"
        for each in busy:
            each.sendall(posted(5000) + b'"x')
        assert good(url) == Answer(200, 1000), "in the place of the second"
        assert second.recv(1) == b""
        busy.append(stack.enter_context(connection(url)))
        busy[-1].sendall(posted(5000) + b'"x')
        until(lambda: asked(url, b"").status == 503)
        assert [answer(each).status for each in busy] == [408] * 3
        assert good(url) == Answer(200, 1000), "in a place whose request has ended"


def test_what_is_no_http_is_refused_in_the_same_form(url: str) -> None:
    found = asked(url, b"HELO there\r\n\r\n")
    assert (found.status, said(found)) == (400, "None")


# Names


OWN = (
    "localhost",
    "LocalHost:8000",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.1.2.3",
    "[::1]",
    "[::1]:8000",
)
OTHERS = (
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "10.0.0.1",
    "[fe80::1]",
    "[::1",
    "::1:8000",
    "user@localhost",
    "",
)


@pytest.mark.parametrize("host", [*OWN, "box.lan", "BOX.lan:80"])
def test_a_service_without_keys_answers_to_its_own_names(host: str) -> None:
    Keys.of(AuthConfig(required=False, hosts=("box.lan",))).require_host([host])


def test_it_answers_to_no_other_name() -> None:
    """A page of the web whose name stands for this machine's address."""
    with served(gateway()) as url:
        for host in OTHERS:
            for request in (head("/", host=host), posted(0).replace(b"localhost", host.encode())):
                found = asked(url, request)
                assert found.status in (421, 400), host
                assert "error" in found.body
        assert asked(url, head("/", host=None)).status in (421, 400)
        assert asked(url, head("/", "Host: evil.example")).status in (421, 400)
        assert asked(url, head("/", host="localhost:1")).status == 200


def test_with_keys_every_name_is_taken() -> None:
    Keys.of(AuthConfig(), {"CMOE_API_KEYS": "key"}).require_host(["anything.example"])
