"""Pictures that clients send: formats, what they cost the base, and the URLs that hold them."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.picture_files import saved
from transformers import CLIPImageProcessor

from cmoe.data.image_limits import limits_of
from cmoe.data.images import ImageTooLargeError, open_image
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.gateway.pictures.images import fetch, from_data_url, is_public


def clip(side: int) -> Any:
    """A base's processor that scales the shorter side up and crops, as LLaVA-1.5's own does."""
    crop = {"height": side, "width": side}
    image_processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop)
    return SimpleNamespace(image_processor=image_processor)


@pytest.mark.parametrize(
    ("size", "made"),
    [
        ((3999, 1), 336 * 336 * 3999),
        ((10, 3999), 336 * 134_367),
        ((65_000, 100), 336 * 218_400),
        ((640, 480), None),
        ((300, 3999), None),
    ],
)
def test_the_cost_of_a_picture_is_that_of_the_bases_own_processor(
    size: tuple[int, int], made: int | None
) -> None:
    """Padded to a square, the first two would have 16 million pixels at most, the limit."""
    limits = limits_of(clip(336), LimitsConfig(picture_side=1).image)
    data = saved(Image.new("1", size), "PNG")
    if made is None:
        assert open_image(data, limits).size == size
        return
    with pytest.raises(ImageTooLargeError, match=f"processor makes up to {made:,} on its way"):
        open_image(data, limits)


def data_url(text: str, head: str = "data:image/png;base64,") -> bytes:
    return from_data_url((head + text).encode(), 1000)


@given(st.binary(min_size=1, max_size=300), st.sampled_from(["\n", "\r\n", " ", "\t", "\f"]))
def test_base64_is_taken_as_mail_and_browsers_write_it(data: bytes, break_: str) -> None:
    """Lines (RFC 2045), percent signs (RFC 3986) and no padding (WHATWG) change nothing."""
    text = base64.b64encode(data).decode()
    lines = break_.join(text[i : i + 76] for i in range(0, len(text), 76))
    for form in (text, lines, f"{break_}{lines}{break_}", text.rstrip("="), quote(text, safe="")):
        assert data_url(form) == data
    assert data_url(quote(lines)) == data
    assert data_url(text, "data:IMAGE/PNG;charset=utf-8; BASE64,") == data


@pytest.mark.parametrize(
    "text",
    [
        "####",
        "QQ=",
        "QQ===",
        "QQ==QQ==",
        "Q",
        "_-__",
        "QUJD\u00a0",
        "QUJD\v",
        "QU%4",
        "%zz",
        "=",
        "é",
    ],
)
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="isn't base64"):
        data_url(text)


def test_a_data_urls_size_is_bounded_before_it_is_decoded() -> None:
    assert len(data_url(base64.encodebytes(bytes(1000)).decode())) == 1000
    for text in ("A" * 2000, "A\n" * 2000, "%41" * 2000):
        with pytest.raises(RequestError, match="larger than 1,000 bytes"):
            data_url(text)
    with pytest.raises(RequestError, match=r"begins with data:image/<format>;base64,"):
        data_url("QQ==", "data:image/png,")


# Images by URL


Pages = dict[str, tuple[int, dict[str, str], bytes]]


@pytest.fixture
def host() -> Iterator[Callable[[Pages], str]]:
    """A real HTTP server on loopback, and its address."""
    servers = []

    def start(pages: Pages) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = pages[self.path]
                if self.path == "/slow":
                    time.sleep(2)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(BrokenPipeError):  # who asked may have gone
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing is said."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://localhost:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()


def test_a_picture_is_fetched_within_limits_alone(host: Callable[[Pages], str]) -> None:
    limits = LimitsConfig(hosts=("localhost",), picture_bytes=1000, fetch_s=0.5)
    address = host(
        {
            "/a.png": (200, {}, b"picture"),
            "/moved": (302, {"Location": "/a.png"}, b""),
            "/large": (200, {}, b"x" * 100_000),
            "/slow": (200, {}, b"late"),
            "/gone": (404, {}, b""),
        }
    )

    def fetched(path: str, *, anywhere: bool = True) -> bytes:
        url = path if "://" in path else address + path
        allowed = {"allowed": lambda _: True} if anywhere else {}
        return asyncio.run(fetch(url, limits, **allowed))

    assert fetched("/a.png") == b"picture"
    for path, cause in (
        ("/moved", "answered 302"),
        ("/gone", "answered 404"),
        ("/large", "larger than 1,000"),
        ("/slow", "longer than 0.5 s"),
        ("ftp://localhost/a.png", "data URL, http or https"),
        ("http://elsewhere/a.png", "aren't fetched from 'elsewhere'"),
        ("http://localhost:99999/a.png", "isn't one"),
    ):
        with pytest.raises(RequestError, match=cause) as refused:
            fetched(path)
        assert refused.value.status == 400
    with pytest.raises(RequestError, match="isn't public"):
        fetched("/a.png", anywhere=False)
    with pytest.raises(RequestError, match="pictures by URL are off"):
        asyncio.run(fetch(f"{address}/a.png", LimitsConfig()))


def test_a_host_is_reached_only_by_a_public_address() -> None:
    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1", "::ffff:10.0.0.1",
                    "0.0.0.0", "192.168.0.1", "100.64.0.1", "224.0.0.1", "fc00::1"):  # fmt: skip
        assert not is_public(address), address
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1::1")
