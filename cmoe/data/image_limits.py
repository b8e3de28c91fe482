"""What a picture may be: its format, its file, its size, and what the base's processor makes of it.

A thin picture is small as a file and huge once a processor has padded it to a square, or has scaled
its shorter side up. What the processor will make is computed from its settings, before it is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""The formats that are read, as Pillow names them; of an animation the first frame."""

RATIO = 200  # of the sides: processors with a budget of pixels refuse more


@dataclass(frozen=True)
class Resizing:
    """How a base's image processor changes a picture's size. Sides and budgets are in pixels.

    Attributes:
        squared: It pads to a square first.
        shortest: What it scales the shorter side to, the longer in proportion.
        longest: What the longer side is cut to in doing so.
        budget: Pixels at least and at most; both sides are rounded to multiples of `multiple`.
        multiple: As `budget` says.
        crop: Side of what it cuts from the middle; a smaller picture is padded to it.
        fixed: Pixels of what is the same for every picture: a fixed size, all tiles together.
    """

    squared: bool = False
    shortest: int | None = None
    longest: int | None = None
    budget: tuple[int, int] | None = None
    multiple: int = 1
    crop: int = 0
    fixed: int = 0

    @classmethod
    def of(cls, image_processor: Any) -> Resizing:
        """The resizing of one of transformers' image processors; none of what isn't one."""

        def setting(name: str) -> Any:
            return getattr(image_processor, name, None)

        def number(name: str) -> int:
            return value if isinstance(value := setting(name), int) else 0

        crop = _longest(setting("crop_size")) if setting("do_center_crop") else 0
        size = _sides(setting("size")) if setting("do_resize") else {}
        if tiled := setting("image_grid_pinpoints"):
            tile = crop or _longest(size) or 1
            tiles = 1 + max(-(-high // tile) * -(-wide // tile) for high, wide in tiled)
            return cls(fixed=tiles * max(tile, _longest(size)) ** 2)
        padded = bool(setting("do_pad") and hasattr(image_processor, "pad_to_square"))
        made = cls(squared=padded, crop=crop)
        short, long = size.get("shortest_edge"), size.get("longest_edge")
        multiple = number("patch_size") * number("merge_size")
        if short and long and multiple:
            return replace(made, budget=(short, long), multiple=multiple)
        if short:
            return replace(made, shortest=short, longest=long)
        if long:  # rounded up to whole tiles
            return replace(made, fixed=(long + _longest(setting("max_image_size"))) ** 2)
        tiles = 1 + max(number("max_patches"), number("max_image_tiles"))
        one = size.get("height", 0) * size.get("width", 0)
        most = size.get("max_height", 0) * size.get("max_width", 0)
        patches = number("max_num_patches") * number("patch_size") ** 2
        return replace(made, fixed=max(tiles * one, most, patches))

    def pixels(self, width: int, height: int) -> int:
        """An upper bound of the pixels of the largest step, the picture itself included.

        Args:
            width: Of the picture.
            height: Of the picture.
        """
        steps = [width * height, self.fixed]
        if self.squared:
            width = height = max(width, height)
            steps.append(width * height)
        if self.shortest is not None:
            short = min(width, height)
            width, height = (-(-side * self.shortest // short) for side in (width, height))
            if self.longest is not None:
                width, height = min(width, self.longest), min(height, self.longest)
            steps.append(width * height)
        if self.budget is not None:
            least, most = (self._near(budget) for budget in self.budget)
            rounded = (width + self.multiple) * (height + self.multiple)
            steps.append(max(least, min(rounded, most)))
        if self.crop:
            steps.append(max(width, self.crop) * max(height, self.crop))
        return max(steps)

    def _near(self, budget: int) -> int:
        """Pixels that sides in the ratio `RATIO` may have, each rounded up from a budget."""
        edge = math.ceil((math.sqrt(RATIO) + 1) * self.multiple * math.sqrt(budget))
        return budget + edge + self.multiple**2

    def refuses(self, width: int, height: int) -> bool:
        """Whether the processor itself takes no picture of that shape."""
        return self.budget is not None and max(width, height) > RATIO * min(width, height)


def _sides(size: Any) -> dict[str, int]:
    """A size of transformers as a dictionary: it may be that already, or be missing."""
    try:
        return {name: int(side) for name, side in dict(size).items() if side}
    except (TypeError, ValueError):
        return {}


def _longest(size: Any) -> int:
    return max(_sides(size).values(), default=0)


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may be; all of it is checked before anything is decoded.

    Attributes:
        file_bytes: Of its file.
        pixels: Of the picture; by default where Pillow itself refuses.
        side: Pixels that each side needs at least.
        processed: Pixels of the largest picture that the base's processor makes of it on its way.
        work: Pixels that decoding goes over, each as often as it does; by default what 100 passes
            over the largest picture are.
        formats: Of `FORMATS`.
        resizing: What the processor does; where the base isn't known, what LLaVA-1.5's own does.
    """

    file_bytes: int = 128 * 2**20
    pixels: int = 178_956_970
    side: int = 1
    processed: int = 178_956_970
    work: int = 17_895_697_000
    formats: tuple[str, ...] = FORMATS
    resizing: Resizing = Resizing(shortest=336, crop=336)


def limits_of(processor: Any, limits: ImageLimits = ImageLimits()) -> ImageLimits:
    """Limits that know what a base's processor makes of a picture.

    Args:
        processor: The base's, of text and pictures together.
        limits: All others.
    """
    resizing = Resizing.of(getattr(processor, "image_processor", None))
    return replace(limits, resizing=resizing)
