"""What tests of pictures compare."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cmoe.data.image_limits import ImageLimits
from cmoe.data.images import (
    open_image,
    to_rgb,
)

LIMITS = ImageLimits()


def pixels(data: bytes, limits: ImageLimits = LIMITS) -> list[list[int]]:
    """The first row, a colour a pixel."""
    image = to_rgb(open_image(data, limits))
    assert image.mode == "RGB"
    found: list[list[int]] = np.asarray(image)[0].tolist()
    return found


def same(one: Image.Image, other: Image.Image) -> bool:
    assert one.mode == other.mode == "RGB"
    return np.array_equal(np.asarray(one), np.asarray(other))
