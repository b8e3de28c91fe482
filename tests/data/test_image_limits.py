"""What a processor makes of a picture is known by arithmetic, and is what it makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import transformers
from PIL import Image
from support.picture_files import saved

from cmoe.data.image_limits import ImageLimits, Resizing, limits_of
from cmoe.data.images import ImageError, ImageTooLargeError, open_image
from cmoe.modeling.pretrained import _padding

SIZES = [(1, 90), (90, 1), (2, 200), (7, 9), (64, 48), (150, 20), (10, 300), (400, 300)]
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("CLIPImageProcessor", {"size": {"shortest_edge": 33}, "crop_size": 33}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 20}, "crop_size": 40}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "do_center_crop": False}),
    ("CLIPImageProcessor", {"do_resize": False, "crop_size": {"height": 50, "width": 50}}),
    ("LlavaImageProcessor", {"size": {"shortest_edge": 33}, "do_pad": True}),
    ("LlavaImageProcessor", {"size": {"shortest_edge": 33}, "do_pad": False}),
    ("LlavaNextImageProcessor", {}),
    ("LlavaOnevisionImageProcessor", {}),
    ("Qwen2VLImageProcessor", {}),
    ("Qwen2VLImageProcessor", {"size": {"shortest_edge": 3136, "longest_edge": 20_000}}),
    ("Idefics2ImageProcessor", {}),
    ("Idefics3ImageProcessor", {}),
    ("SmolVLMImageProcessor", {"do_image_splitting": False}),
    ("GotOcr2ImageProcessor", {"crop_to_patches": True, "size": {"height": 60, "width": 60}}),
    ("SiglipImageProcessor", {}),
    ("Siglip2ImageProcessor", {}),
    ("PixtralImageProcessor", {}),
    ("MllamaImageProcessor", {}),
    ("DeepseekVLImageProcessor", {}),
]
STEPS = ("resize", "pad", "pad_to_square", "center_crop")


def made(image_processor: Any, size: tuple[int, int]) -> int:
    """Pixels of the largest picture that a real processor has on its way."""
    seen = [size[0] * size[1]]

    def watched(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            given = step(*arguments, **options)
            steps = given if isinstance(given, list | tuple) else [given]
            seen.extend(math.prod(one.shape[-2:]) for one in steps if hasattr(one, "shape"))
            return given

        return call

    for name in STEPS:
        if hasattr(type(image_processor), name):
            step = getattr(type(image_processor), name).__get__(image_processor)
            setattr(image_processor, name, watched(step))
    given = image_processor(Image.new("RGB", size), return_tensors="np")["pixel_values"]
    doubled = getattr(image_processor, "temporal_patch_size", 1)
    return max(*seen, given.size // (3 * doubled))


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_no_step_of_a_processor_is_larger_than_is_said(name: str, settings: dict[str, Any]) -> None:
    image_processor = getattr(transformers, name)(**settings)
    resizing = Resizing.of(image_processor)
    for size in SIZES:
        if resizing.refuses(*size):
            with pytest.raises(ValueError, match="aspect ratio"):
                made(image_processor, size)
        elif name != "Idefics2ImageProcessor" or 1 not in size:  # which divides by zero
            most = resizing.pixels(*size)
            assert made(image_processor, size) <= most
            # What grows with a picture's shape is not only bounded, it is met.
            if resizing.shortest and not resizing.longest and min(size) * resizing.shortest > 999:
                assert most <= 1.1 * made(image_processor, size)


def clip(side: int = 336) -> Any:
    crop = {"height": side, "width": side}
    return transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop)


def test_what_is_made_of_a_thin_picture_is_shortest_edge_times_its_ratio() -> None:
    """LLaVA-1.5's own processor, as the hub has it: 336 x 3,360,000 of 10,000 pixels."""
    assert Resizing.of(clip()).pixels(1, 10_000) == 336 * 3_360_000
    assert Resizing.of(clip()).pixels(10_000, 1) == 336 * 3_360_000
    assert Resizing.of(_padding(clip())).pixels(1, 10_000) == 10_000 * 10_000
    assert Resizing.of(clip()).pixels(336, 336) == 336 * 336
    assert Resizing.of(None).pixels(1, 10_000) == 10_000


class Processor:
    """Of text and pictures together."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor


def thin(width: int, height: int) -> bytes:
    return saved(Image.new("1", (width, height)), "PNG")


def test_a_picture_is_refused_for_what_the_base_would_make_of_it() -> None:
    limits = limits_of(Processor(clip()))
    cause = "has 1 x 10000 pixels, of which the base's processor makes up to 1,128,960,000 on its"
    with pytest.raises(ImageTooLargeError, match=cause):
        open_image(thin(1, 10_000), limits)
    assert open_image(thin(100, 10_000), limits).size == (100, 10_000)
    assert open_image(thin(1, 10_000), limits_of(Processor(_padding(clip())))).size == (1, 10_000)
    assert open_image(thin(1, 10_000), limits_of(object())).size == (1, 10_000)
    few = ImageLimits(processed=1_000_000)
    with pytest.raises(
        ImageTooLargeError, match=r"makes up to 100,000,000 on its way; at most 1,0"
    ):
        open_image(thin(1, 10_000), limits_of(Processor(_padding(clip())), few))


def test_a_base_that_is_not_known_is_taken_for_llavas_own() -> None:
    assert ImageLimits().resizing == Resizing.of(clip())
    with pytest.raises(ImageTooLargeError, match="makes up to 1,128,960,000"):
        open_image(thin(1, 10_000), ImageLimits())


def test_a_ratio_that_the_processor_refuses_is_refused_before() -> None:
    limits = limits_of(Processor(transformers.Qwen2VLImageProcessor()))
    with pytest.raises(ImageError, match=r"1 x 201 pixels; the base's processor takes no picture"):
        open_image(thin(1, 201), limits)
    assert open_image(thin(1, 200), limits).size == (1, 200)
