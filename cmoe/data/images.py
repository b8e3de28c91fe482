"""Pictures from outside: the only place that opens and decodes them.

Every picture goes the same way, whether it is trained on, prepared or sent by a client: its file is
read within limits (`read_image`), its header is checked against all of them (`open_image`), and
only then it is decoded, to three channels of 8 bits (`to_rgb`). Whatever goes wrong is an
`ImageError` that names the picture.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from cmoe.common.errors import DataError
from cmoe.data.image_headers import UnusableError, header_of
from cmoe.data.image_limits import ImageLimits
from cmoe.data.samples import Picture, name_of

PICTURE = "the picture"  # what errors call one without a file
SIDE = 65_535  # pixels: the longest side of any JPEG or GIF; longer lines cost without bound


class ImageError(DataError):
    """A picture that can't be used; says which and why."""


class ImageTooLargeError(ImageError):
    """A picture over a limit."""


class TooMuchWorkError(ImageTooLargeError):
    """A picture whose decoding goes over too many pixels.

    Args:
        name: What the error calls it.
        work: Pixels that decoding goes over, each as often as it does.
        limit: The most that it may go over.
    """

    def __init__(self, name: str, work: int, limit: int) -> None:
        super().__init__(
            f"{name} takes as much work to decode as {work:,} pixels; at most {limit:,}"
        )
        self.name, self.work = name, work


# A picture's file


def read_image(file: Picture, limits: ImageLimits) -> bytes:
    """A picture's file.

    Raises:
        ImageError: It isn't a regular file, can't be read, is empty or too large.
    """
    name = name_of(file)
    try:
        data = _read(file, limits, name) if isinstance(file, Path) else file.open().read()
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name} is missing") from error
    except Exception as error:  # the system's, a path's that is none, or a Parquet file's
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{name} can't be read: {reason}") from error
    if not data:
        raise ImageError(f"{name} can't be read: its file is empty")
    if len(data) > limits.file_bytes:
        raise _too_large_file(name, limits)
    return data


def _read(file: Path, limits: ImageLimits, name: str) -> bytes:
    """A regular file of the right size: opening a FIFO waits, and a device may do anything.

    Raises:
        ImageTooLargeError: It is over the limit.
        OSError, ValueError: It isn't one, or can't be read.
    """
    _require_regular(os.stat(file))
    with open(file, "rb", opener=_at_once) as opened:
        found = os.fstat(opened.fileno())
        _require_regular(found)
        if found.st_size > limits.file_bytes:
            raise _too_large_file(name, limits)
        return opened.read(found.st_size + 1)  # one more: it may be growing


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = "folder" if stat.S_ISDIR(found.st_mode) else "device, pipe or socket"
        raise OSError(f"it is a {what}, a file is needed")


# Its header


def open_image(data: bytes, limits: ImageLimits, name: str = PICTURE) -> Image.Image:
    """A picture by its header, not yet decoded.

    Args:
        data: Its file.
        limits: All of them are checked.
        name: What errors call it.

    Raises:
        ImageError: It is of no format that is read, damaged, or too small.
        ImageTooLargeError: It is over a limit, or the base's processor would make too much of it;
            `TooMuchWorkError` where its decoding would take too long.
    """
    if len(data) > limits.file_bytes:
        raise _too_large_file(name, limits)
    with _decoding(name):
        header = header_of(data)
        if header.size:
            _require_size(*header.size, limits, name)
        try:
            image = Image.open(io.BytesIO(header.data), formats=limits.formats)
        except Image.DecompressionBombError as error:
            raise ImageTooLargeError(
                f"{name} has many more pixels than {limits.pixels:,}"
            ) from error
        except UnidentifiedImageError as error:
            formats = ", ".join(limits.formats)
            raise ImageError(
                f"{name} can't be decoded: not a picture that can be read; formats are {formats}"
            ) from error
    width, height = image.size
    _require_size(width, height, limits, name)
    if (work := header.work(width * height)) > limits.work:
        raise TooMuchWorkError(name, work, limits.work)
    return image


def _require_size(width: int, height: int, limits: ImageLimits, name: str) -> None:
    has = f"{name} has {width} x {height} pixels"
    if width * height > limits.pixels:
        raise ImageTooLargeError(f"{has}; at most {limits.pixels:,}")
    if max(width, height) > SIDE:
        raise ImageTooLargeError(f"{has}; each side at most {SIDE:,}")
    if min(width, height) < limits.side:
        raise ImageError(f"{has}; each side needs {limits.side}")
    if limits.resizing.refuses(width, height):
        raise ImageTooLargeError(f"{has}; the base's processor takes no picture so thin")
    made = limits.resizing.pixels(width, height)
    if made > limits.processed:
        raise ImageTooLargeError(
            f"{has}, of which the base's processor makes up to {made:,} on its way; at most "
            f"{limits.processed:,}"
        )


def _too_large_file(name: str, limits: ImageLimits) -> ImageError:
    return ImageTooLargeError(f"{name} has a file larger than {limits.file_bytes:,} bytes")


def image_size(file: Picture, limits: ImageLimits) -> tuple[int, int]:
    """Width and height in pixels; errors as in `read_image` and `open_image`."""
    return open_image(read_image(file, limits), limits, name_of(file)).size


def load_image(file: Picture, limits: ImageLimits) -> Image.Image:
    """A picture in three channels; errors as in `read_image`, `open_image` and `to_rgb`."""
    name = name_of(file)
    return to_rgb(open_image(read_image(file, limits), limits, name), name)


# Its pixels


def to_rgb(image: Image.Image, name: str = PICTURE) -> Image.Image:
    """An opened picture in three channels of 8 bits; what is transparent is composed over white.

    16 bits are scaled to 8, `round(value * 255 / 65535)` (PNG specification, 13.12).

    Args:
        image: As `open_image` gives it.
        name: What errors call it.

    Raises:
        ImageError: It is damaged, or of a mode that can't be used.
    """
    with _decoding(name):
        transparent = _transparent(image)
        image.load()
        if image.mode in _GREY_16:
            return _scaled(image, transparent)
        if image.mode not in (*_OPAQUE, *_ALPHA):
            raise UnusableError(f"pictures of mode {image.mode} can't be used")
        if image.mode == "P" and not (image.palette and image.palette.palette):
            raise UnusableError("its colours have no palette")
        if transparent is not None:
            image.info["transparency"] = transparent
        else:  # a PNG's text of that name, before its pixels or behind them
            image.info.pop("transparency", None)
            if image.mode not in _ALPHA and not _has_alpha_palette(image):
                return image.convert("RGB")
        if image.mode == "La":
            image = image.convert("LA")
        colours = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(colours, mask=colours)
        return white


_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_OPAQUE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_DEPTH = {"L;2": 2, "L;4": 4}  # of PNGs whose greys Pillow scales to 8 bits


def _has_alpha_palette(image: Image.Image) -> bool:
    return image.palette is not None and image.palette.mode == "RGBA"


def _transparent(image: Image.Image) -> Any:
    """The colour, grey or palette entries that a picture's header calls transparent, if any.

    A PNG says a grey in its own bit depth, in the least significant bits of 16 (PNG specification,
    11.3.2.1); Pillow gives it as it stands, and the picture's greys scaled to 8 bits.
    """
    found = image.info.get("transparency")
    if found is None or isinstance(found, str):  # a PNG's text of that name
        return None
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else None
    raw = arguments if isinstance(arguments, str) else ""
    if image.mode == "RGB":
        if raw == "RGB;16B":
            raise UnusableError("it is of 16 bits with a transparent colour, of which 8 are read")
        return tuple(part & 255 for part in found)
    if image.mode == "L":
        top = 2 ** _DEPTH.get(raw, 8) - 1
        return (found & top) * (255 // top)
    return found


def _scaled(image: Image.Image, transparent: int | None) -> Image.Image:
    """A grey of 16 bits in three channels of 8."""
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 65_535):
        raise UnusableError(
            f"its greys go from {values.min()} to {values.max()}, not from 0 to 65535"
        )
    table = ((np.arange(65_536) * 255 + 32_767) // 65_535).astype(np.uint8)
    grey = table[values]
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


# Errors and warnings of Pillow


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever a decoder raises becomes an `ImageError`; what it warns of is said to nobody."""
    try:
        with _QUIET:
            yield
    except ImageError:
        raise
    except UnusableError as error:
        raise ImageError(f"{name} can't be used: {error}") from error
    except MemoryError as error:
        raise ImageTooLargeError(f"{name} can't be decoded: it needs too much memory") from error
    except Exception as error:  # decoders raise what they like
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name} can't be decoded: it is damaged: {reason}") from error


class _Quiet:
    """Keeps Pillow's warnings back while at least one thread decodes.

    `warnings.catch_warnings` alone would restore another thread's filters.
    """

    def __init__(self) -> None:
        self._lock, self._threads = threading.Lock(), 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._caught.__exit__(None, None, None)


_QUIET = _Quiet()
