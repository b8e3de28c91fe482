"""Images that clients send: checked before they are decoded, and fetched only from safe hosts.

Their content is checked by `cmoe.data.images`, as every image's is.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from PIL import Image

from cmoe.data.image_limits import ImageLimits
from cmoe.data.images import ImageError, ImageTooLargeError, open_image, to_rgb
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.limits import LimitsConfig

PARAM = "messages"


def _bad(message: str, code: str = "invalid_image", status: int = 400) -> RequestError:
    return RequestError(status, message, code=code, param=PARAM)


async def image_bytes(url: str, limits: LimitsConfig) -> bytes:
    """The file behind an image's URL.

    Raises:
        RequestError: The URL is neither a data URL nor one that may be fetched, or the file is too
            large.
    """
    if url.startswith("data:"):
        return from_data_url(url, limits)
    return await fetch(url, limits)


def from_data_url(url: str, limits: LimitsConfig) -> bytes:
    """The file in a data URL; errors as in `image_bytes`.

    White space, percent signs and missing padding are read as browsers read them (WHATWG Fetch,
    "data: URL processor"; Infra, "forgiving-base64 decode").
    """
    head, comma, text = url.partition(",")
    kind, *options = (part.strip().lower() for part in head.removeprefix("data:").split(";"))
    if not comma or "base64" not in options or not kind.startswith("image/"):
        raise _bad("a picture's URL begins with data:image/<format>;base64,")
    data = unquote_to_bytes(text).translate(None, b" \t\n\f\r")
    if len(data) * 3 // 4 > limits.picture_bytes + 3:
        raise _too_large(limits)
    if not data.endswith(b"="):
        data += b"=" * (-len(data) % 4)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(f"the picture's data URL isn't base64: {error}") from error


def _too_large(limits: LimitsConfig) -> RequestError:
    return _bad(
        f"the picture's file is larger than {limits.picture_bytes:,} bytes", "image_too_large"
    )


def open_checked(data: bytes, limits: ImageLimits) -> Image.Image:
    """An image whose header was read and checked, and that isn't decoded yet.

    Raises:
        RequestError: The image has another format, or is too small or too large.
    """
    try:
        return open_image(data, limits)
    except ImageTooLargeError as error:
        raise _bad(str(error), "image_too_large") from error
    except ImageError as error:
        raise _bad(str(error)) from error


def decode(image: Image.Image) -> Image.Image:
    """An opened image in three channels.

    Raises:
        RequestError: The image is damaged.
    """
    try:
        return to_rgb(image)
    except ImageError as error:
        raise _bad(str(error)) from error


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
        raise _bad("the picture's URL isn't one") from error
    if parts.scheme not in ("http", "https"):
        raise _bad("a picture's URL is a data URL, http or https")
    if not limits.hosts:
        raise _bad("pictures by URL are off here; send them as data URLs", "remote_images_off")
    if host not in limits.hosts or parts.username is not None:
        raise _bad(f"pictures aren't fetched from {host!r}", "host_not_allowed")

    import aiohttp

    class Resolver(aiohttp.ThreadedResolver):
        async def resolve(self, *args: Any, **kwargs: Any) -> Any:
            found = await super().resolve(*args, **kwargs)
            if not all(allowed(entry["host"]) for entry in found):
                raise _bad(f"{host!r} stands for an address that isn't public", "host_not_allowed")
            return found

    try:
        if _is_address(host) and not allowed(host):
            raise _bad(f"{host!r} isn't public", "host_not_allowed")
        connector = aiohttp.TCPConnector(resolver=Resolver())
        timeout = aiohttp.ClientTimeout(total=limits.fetch_s)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise _bad(f"{host} answered {response.status} for the picture")
            data = bytearray()
            async for part in response.content.iter_chunked(65_536):
                data += part
                if len(data) > limits.picture_bytes:
                    raise _too_large(limits)
            return bytes(data)
    except TimeoutError as error:
        raise _bad(f"{host} took longer than {limits.fetch_s:g} s for the picture") from error
    except aiohttp.ClientError as error:
        raise _bad(f"the picture can't be fetched from {host}: {type(error).__name__}") from error


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
