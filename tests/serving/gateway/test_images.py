"""Pictures that clients send: formats, what they cost the base, and the URLs that hold them."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.picture_files import saved
from transformers import CLIPImageProcessor

from cmoe.data.image_limits import FORMATS, limits_of
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.images import decoded, from_data_url, opened
from cmoe.serving.settings import LimitsConfig


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
        assert decoded(opened(data, limits)).size == size
        return
    with pytest.raises(RequestError, match=f"processor makes up to {made:,} on its way") as refused:
        opened(data, limits)
    assert (refused.value.status, refused.value.code) == (400, "image_too_large")


def test_formats_of_a_service_are_those_that_are_read_or_fewer() -> None:
    assert LimitsConfig().formats == FORMATS
    assert LimitsConfig(formats=("PNG",)).image.formats == ("PNG",)
    for formats in (("PNG", "TIFF"), ("EPS",), ("png",), ()):
        with pytest.raises(ValueError, match=r"limits\.formats has .*JPEG, PNG, WEBP, GIF, BMP"):
            LimitsConfig(formats=formats)


def data_url(text: str, head: str = "data:image/png;base64,") -> bytes:
    return from_data_url(head + text, LimitsConfig(picture_bytes=1000))


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
