"""A locator in front finds what the whole model finds, bit for bit, with fewer layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from PIL import Image
from support.vllm_bases import FAMILIES, write_base

from cmoe.data.batches import ChatTurn, Collator
from cmoe.modeling.base import find_layers
from cmoe.modeling.front import FrontLocator
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.settings import LocatorConfig

IMAGE = Image.new("RGB", (40, 30), (200, 30, 10))


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    write_base(FAMILIES[request.param], folder)
    return load_base(str(folder))


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_it_locates_as_the_whole_model_does(base: Any, layer: int) -> None:
    model, collator = copy.deepcopy(base[0]), Collator(base[1], 512, 1)
    prompts = [
        collator.conversation([ChatTurn("user", (None, text))], [IMAGE])
        for text in ("Which is it?", "How many are there?")
    ]
    config = LocatorConfig(layer=layer, pooling="mean", hidden=8, latent=4, steps=5)
    whole = GrowingVLM(copy.deepcopy(model), locator=config)
    layers, scalars = len(find_layers(model)), sum(p.numel() for p in model.parameters())
    front = FrontLocator(model, config)
    for seed in range(3):
        noise = torch.randn(16, whole.features(prompts[0]).shape[1])
        entry = whole.bank.fit(noise, seed)
        primitive = Primitive(str(seed), 1, 1.0, {}, {}, entry)
        whole.append(primitive)
        front.append(primitive)
    for prompt in prompts:
        found, expected = front.locate(prompt), whole.locate(prompt)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.tasks, expected.tasks)
        assert front.claimed(found) == whole.claimed(expected)
    assert front.base_digest == whole.base_digest
    kept = sum(p.numel() for p in front.base.parameters())
    assert kept < scalars if 0 <= layer < layers - 1 else kept <= scalars
    with pytest.raises(ValueError, match="task '0' is already learned"):
        front.append(primitive_named("0", entry))
    with pytest.raises(ValueError, match="task 'none' has no locator entry"):
        front.append(primitive_named("none", {}))


def primitive_named(task: str, entry: dict[str, torch.Tensor]) -> Primitive:
    return Primitive(task, 1, 1.0, {}, {}, entry)
