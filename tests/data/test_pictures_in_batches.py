"""Pictures in a batch: any kind has three channels, and one that can't be used is named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import mini_store
from support.picture_files import chunk, png
from torch import Tensor

from cmoe.common.errors import DataError
from cmoe.data.batches import Collator
from cmoe.data.samples import Sample


@pytest.fixture(scope="module")
def processor() -> Any:
    return mini_store.processor()


def collator(processor: Any) -> Collator:
    return Collator(processor, 512, 16)


def pictured(file: Path) -> Sample:
    return Sample("s1", "What is it?", "a cup", (file,))


def seen(processor: Any, folder: Path, picture: Image.Image) -> Tensor:
    """What a base sees of a picture."""
    picture.save(folder / "seen.png")
    return collator(processor).prompts([pictured(folder / "seen.png")])["pixel_values"]


def test_16_bits_and_8_bits_of_grey_are_the_same_picture(processor: Any, tmp_path: Path) -> None:
    greys = np.arange(48 * 48).reshape(48, 48) % 256
    coarse = seen(processor, tmp_path, Image.fromarray(greys.astype(np.uint8)))
    fine = seen(processor, tmp_path, Image.fromarray((greys * 257).astype(np.uint16)))
    assert torch.equal(fine, coarse)


def test_what_is_transparent_is_white(processor: Any, tmp_path: Path) -> None:
    white = seen(processor, tmp_path, Image.new("RGB", (48, 48), "white"))
    clear = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    assert torch.equal(seen(processor, tmp_path, clear), white)
    assert torch.equal(seen(processor, tmp_path, clear.convert("LA")), white)


def test_a_picture_that_cannot_be_used_names_its_sample_and_its_file(
    processor: Any, tmp_path: Path
) -> None:
    """Also where the decoder says so by a plain ValueError, and where the base would make much."""
    files: dict[str, tuple[bytes, str]] = {
        "short.png": (png([bytes(6)], 2, chunk(b"gAMA", b"\1")), "can't be decoded: it is damaged"),
        "thin.png": (png([bytes(42_000)], 14_000), "has 14000 x 1 pixels, of which the base's"),
        "text.png": (b"text", "can't be decoded: not a picture"),
    }
    for name, (data, cause) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"sample 's1': picture {tmp_path / name} {cause}"):
            collator(processor).training([pictured(tmp_path / name)])
    with pytest.raises(DataError, match=r"sample 's1': picture '.*x00.*' can't be read"):
        collator(processor).prompts([pictured(tmp_path / "a\0b")])


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (3, 3), (1, 50), (50, 3), (4, 1)])
def test_the_smallest_pictures_are_read(
    processor: Any, tmp_path: Path, size: tuple[int, int]
) -> None:
    """Sides of 1 and 3 pixels look like channels."""
    red = seen(processor, tmp_path, Image.new("RGB", size, "red"))
    assert red.shape == (1, 3, 48, 48)
    assert (red[0, 0] - red[0, 1]).max() > 0.5
    assert torch.equal(red[0, 1], red[0, 2])


def test_pictures_that_cannot_be_read_are_named(processor: Any, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.effect_noise((48, 48), 90).save(file, "PNG")
    whole = file.getvalue()
    bad = tmp_path / "bad.png"
    fine = Sample("fine", "Why?", "no")
    for content in (b"", b"no picture", whole[:20], whole[: len(whole) // 2], whole[8:]):
        bad.write_bytes(content)
        for make in (collator(processor).prompts, collator(processor).training):
            with pytest.raises(DataError, match=r"sample 'bad/9': picture .*bad\.png can't"):
                make([fine, Sample("bad/9", "Why?", "no", (bad,))])
    bad.unlink()
    with pytest.raises(DataError, match="'bad/9'"):
        collator(processor).prompts([Sample("bad/9", "Why?", "no", (bad,))])
    with pytest.raises(DataError, match="'bad/9'"):
        collator(processor).prompts([Sample("bad/9", "Why?", "no", (tmp_path,))])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_picture_is_read_or_named(
    processor: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    made = io.BytesIO()
    form = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]))
    Image.radial_gradient("L").resize((20, 16)).convert("RGB").save(made, form)
    content = bytearray(made.getvalue())
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, max_size=4)):
        content[place] ^= 0xA5
    content = content[: data.draw(places)]
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(content)
    try:
        inputs = collator(processor).prompts([Sample("it", "Why?", "no", (file,))])
        said = f"'it' has {inputs['pixel_values'].shape[1]} channels"
    except DataError as error:
        said = str(error)
    assert "'it' has 3 channels" in said or "sample 'it': picture" in said


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_pictures_of_any_mode_are_three_channels(processor: Any, tmp_path: Path, mode: str) -> None:
    file = tmp_path / "picture.png"
    Image.new(mode, (30, 20)).save(file)
    inputs = collator(processor).prompts([Sample("1", "Why?", "no", (file,))])
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)
