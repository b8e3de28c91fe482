"""Files of images that clients send: in data URLs, or fetched from safe hosts.

What they hold is decoded by `decoders`, in processes of their own.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.limits import LimitsConfig

PARAM = "messages"
TOO_LARGE = "image_too_large"
LONGEST_HEAD = 1000  # bytes of a data URL before its comma
ESCAPED = b"+/= \t\n\f\r"  # what base64 consists of beside letters and digits, and white space
OTHER_ESCAPES = 10_000  # of a data URL: what needs no escape


def bad(message: str, code: str = "invalid_image") -> RequestError:
    """The error of a request whose image can't be used."""
    return RequestError(400, message, code=code, param=PARAM)


def from_data_url(url: bytes, most: int) -> bytes:
    """The file in a data URL.

    White space, percent signs and missing padding are read as browsers read them (WHATWG Fetch,
    "data: URL processor"; Infra, "forgiving-base64 decode").

    Args:
        url: The URL, in UTF-8.
        most: Bytes that the file may have.

    Raises:
        RequestError: It is none of an image in base64, or its file is too large.
    """
    comma = url.find(b",", 0, LONGEST_HEAD)
    head = url[: max(comma, 0)].decode("latin-1").removeprefix("data:")
    kind, *options = (part.strip().lower() for part in head.split(";"))
    if "base64" not in options or not kind.startswith("image/"):
        raise bad("a picture's URL begins with data:image/<format>;base64,")
    data = _unescaped(url[comma + 1 :]).translate(None, b" \t\n\f\r")
    if len(data) * 3 // 4 > most + 3:
        raise too_large(most)
    if not data.endswith(b"="):
        data += b"=" * (-len(data) % 4)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad(f"the picture's data URL isn't base64: {error}") from error


def _unescaped(text: bytes) -> bytes:
    """Percent signs as what they stand for. Python's own reader takes seconds for millions."""
    if b"%" not in text:
        return text
    for char in ESCAPED:
        for escape in (b"%%%02X" % char, b"%%%02x" % char):
            text = text.replace(escape, bytes([char]))
    if text.count(b"%") > OTHER_ESCAPES:
        raise bad("the picture's data URL escapes letters and digits, more than a few of them")
    return unquote_to_bytes(text)


def too_large(most: int) -> RequestError:
    return bad(f"the picture's file is larger than {most:,} bytes", TOO_LARGE)


# Images by URL


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_global and not ip.is_multicast


async def fetch(
    url: str, limits: LimitsConfig, allowed: Callable[[str], bool] = is_public
) -> bytes:
    """An image's file from one of `limits.hosts`.

    The address that is checked is the one that is connected to, so that a name that resolves to
    another address a moment later does no harm.

    Raises:
        RequestError: The host isn't on the list or isn't public, or it doesn't send a file of an
            allowed size in time.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        parts.port  # noqa: B018 - raises where it is none
    except ValueError as error:
        raise bad("the picture's URL isn't one") from error
    if parts.scheme not in ("http", "https"):
        raise bad("a picture's URL is a data URL, http or https")
    if not limits.hosts:
        raise bad("pictures by URL are off here; send them as data URLs", "remote_images_off")
    if host not in limits.hosts or parts.username is not None:
        raise bad(f"pictures aren't fetched from {host!r}", "host_not_allowed")

    import aiohttp

    class Resolver(aiohttp.ThreadedResolver):
        async def resolve(self, *args: Any, **kwargs: Any) -> Any:
            found = await super().resolve(*args, **kwargs)
            if not all(allowed(entry["host"]) for entry in found):
                raise bad(f"{host!r} stands for an address that isn't public", "host_not_allowed")
            return found

    try:
        if _is_address(host) and not allowed(host):
            raise bad(f"{host!r} isn't public", "host_not_allowed")
        connector = aiohttp.TCPConnector(resolver=Resolver())
        timeout = aiohttp.ClientTimeout(total=limits.fetch_s)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise bad(f"{host} answered {response.status} for the picture")
            data = bytearray()
            async for part in response.content.iter_chunked(65_536):
                data += part
                if len(data) > limits.picture_bytes:
                    raise too_large(limits.picture_bytes)
            return bytes(data)
    except TimeoutError as error:
        raise bad(f"{host} took longer than {limits.fetch_s:g} s for the picture") from error
    except aiohttp.ClientError as error:
        raise bad(f"the picture can't be fetched from {host}: {type(error).__name__}") from error


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
