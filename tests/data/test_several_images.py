"""Several images in a conversation, anywhere in it, as each family's own processor reads them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.vllm_bases import FAMILIES, write_base
from torch import Tensor

from cmoe.common.errors import DataError
from cmoe.data.batches import IGNORED, Collator
from cmoe.data.images import load_image
from cmoe.data.samples import Sample, Turn
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE

SIZES = ((40, 30), (64, 64), (30, 90), (96, 40))
Base = tuple[Any, Collator]


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp(request.param)
    write_base(FAMILIES[request.param], folder)
    model, processor = load_base(str(folder))
    return model, Collator(processor, 4096, 1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("images")
    for number, size in enumerate(SIZES):
        noise = torch.randint(0, 256, (6, 6, 3), generator=torch.Generator().manual_seed(number))
        image = Image.fromarray(noise.to(torch.uint8).numpy())
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return tuple(folder / f"{number}.png" for number in range(len(SIZES)))


@pytest.fixture(scope="module")
def samples(images: tuple[Path, ...]) -> list[Sample]:
    one, two, three, four = images
    return [
        Sample("front", "Which is red?", "both", (one, two)),
        Sample("one", "What is it?", "a ring", (three,)),
        Sample("none", "Why?", "no"),
        Sample("later", "<image>It?", "red", (one, four), further=(Turn("And <image>?", "it"),)),
        Sample("only later", "Hello.", "Yes?", (two,), further=(Turn("<image> Now?", "no"),)),
    ]


def by_processor(collator: Collator, sample: Sample) -> dict[str, Tensor]:
    """A whole conversation, as the base's processor reads it."""
    messages = [
        {
            "role": ("user", "assistant")[number % 2],
            "content": [
                {"type": "image"} if part is None else {"type": "text", "text": part}
                for part in parts
            ],
        }
        for number, parts in enumerate(sample.turns)
    ]
    shown = [[load_image(image, collator.limits) for image in sample.images]]
    text = collator.processor.apply_chat_template(messages)
    return dict(
        collator.processor(
            text=[text], images=shown if sample.images else None, return_tensors="pt"
        )
    )


def test_a_conversation_is_read_as_the_processor_reads_it(
    base: Base, samples: list[Sample]
) -> None:
    _, collator = base
    for sample in samples:
        expected = by_processor(collator, sample)
        found = collator.training([sample])
        ids = found["input_ids"]
        assert ids[0].tolist() == expected["input_ids"][0, : ids.shape[1]].tolist(), sample.id
        for name, tensor in expected.items():
            if tensor.shape == expected["input_ids"].shape:
                tensor = tensor[:, : ids.shape[1]]
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
        answered = found["labels"][0] != IGNORED
        said = collator.tokenizer.decode(found["labels"][0][answered])
        for answer in (sample.answer, *(turn.answer for turn in sample.further)):
            assert answer in said
        prompt = collator.prompts([sample])["input_ids"]
        assert (prompt[0] != ids[0, : prompt.shape[1]]).sum() == 0 or sample.id == "later"


def test_a_batch_gives_each_sample_what_it_gets_alone(base: Base, samples: list[Sample]) -> None:
    model, collator = base
    together = collator.training(samples)
    labels = together.pop("labels")
    with torch.no_grad():
        logits = model(**together).logits[:, -labels.shape[1] :]
        for row, sample in enumerate(samples):
            alone = collator.training([sample])
            own = alone.pop("labels")[0]
            expected = model(**alone).logits[0, -len(own) :][own != IGNORED]
            found = logits[row][labels[row] != IGNORED]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_images_apart_from_each_other_keep_their_places(
    base: Base, images: tuple[Path, ...]
) -> None:
    """Or are refused, where the base's chat template would move them."""
    _, collator = base
    sample = Sample("apart", "Is <image> like <image> here?", "no", images[:2])
    with pytest.raises(DataError, match=r"'apart': the base's chat template doesn't show images"):
        collator.prompts([sample])
    processor = copy.copy(collator.processor)
    by_kind = re.compile(
        r"\{%- for part in [^%]*== 'image' %\}(.*?)\{% endfor -%\}\s*"
        r"\{%- for part in [^%]*== 'text' %\}(.*?)\{% endfor -%\}"
    )
    in_order = (
        "{%- for part in message['content'] %}{% if part['type'] == 'image' %}\\1{% else %}\\2"
        "{% endif %}{% endfor -%}"
    )
    processor.chat_template, changed = by_kind.subn(in_order, processor.chat_template)
    assert changed == 1
    there = Collator(processor, 4096, 1)
    expected = by_processor(there, sample)["input_ids"][0]
    found = there.training([sample])["input_ids"][0]
    assert found.tolist() == expected[: len(found)].tolist()
    text = there.tokenizer.decode(found)
    assert len(text[text.index("Is") + 2 : text.index("like")].strip()) > 1


def test_a_base_that_takes_one_refuses_a_second(
    images: tuple[Path, ...], samples: list[Sample]
) -> None:
    """As one whose processor says so does, or whose template shows but one."""
    _, processor = load_base(str(MINI_BASE))
    single = copy.copy(processor)
    single.chat_template = processor.chat_template.replace(
        "{{ '<image>\\n' }}", "{% if loop.first %}{{ '<image>\\n' }}{% endif %}"
    )
    with pytest.raises(DataError, match="'front': the base's chat template doesn't show images"):
        Collator(single, 4096, 1).prompts(samples[:1])

    class Single(type(processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, images: Any = None, **more: Any) -> Any:
            if images and len(images[0]) > 1:
                raise ValueError("one image alone")
            return super().__call__(*args, images=images, **more)

    processor.__class__ = Single
    with pytest.raises(DataError, match=r"'front': the base doesn't take 2 images.*one image"):
        Collator(processor, 4096, 1).training(samples)
