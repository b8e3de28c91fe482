"""How a row names an image, or holds it: a path, `file://`, `data:`, or a cell of Arrow."""

from __future__ import annotations

import os
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cmoe.common.errors import DataError
from cmoe.data.row_rules import require_path, shown
from cmoe.data.samples import EmbeddedPicture, InlinePicture, Picture


def own_image(image: Any, folder: Path) -> Picture:
    """The image that a row has.

    Args:
        image: As the row has it.
        folder: What its path is relative to, and has to lie below.

    Raises:
        DataError: It is none, would have to be fetched, or lies elsewhere.
    """
    if isinstance(image, EmbeddedPicture):
        return image
    if isinstance(image, str):
        scheme = image[:8].partition(":")[0].lower()
        if scheme == "data":
            return _inline(image)
        if scheme in ("http", "https"):
            raise DataError(
                f"image is {shown(image)}, and nothing is fetched from the web; save it below "
                "data.images and give its path there"
            )
        if image.startswith("file://"):
            image = _path(image)
        if image.startswith("/"):
            return folder / _below(image, folder)
    require_path(image)
    return folder / str(image)


def _inline(url: str) -> InlinePicture:
    kind, comma, text = url.partition(",")
    try:
        if not comma or not kind.lower().endswith(";base64"):
            raise ValueError("what is needed is data:image/png;base64,... or another type")
        data = b64decode(text, validate=True)
    except ValueError as error:
        raise DataError(
            f"image is a data: URL that can't be read, {shown(url)}: {error}"
        ) from error
    return InlinePicture(sha256(data).hexdigest(), data)


def _path(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DataError(f"image is {shown(url)}, no URL: {error}") from error
    if parts.netloc not in ("", "localhost"):
        raise DataError(f"image is {shown(url)}; file:///PATH is needed")
    return unquote(parts.path) or "/"


def _below(path: str, folder: Path) -> str:
    """An absolute path as it is from the folder that it lies below."""
    inside = f"{os.path.abspath(folder)}{os.sep}"
    if not path.startswith(inside):
        raise DataError(
            f"image must be a path below data.images, this is {shown(path)}, and data.images is "
            f"{folder}"
        )
    found = path.removeprefix(inside)
    require_path(found)
    return found
