"""A pass that takes up what a pass before it made has the bits of a whole one."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import CONFIGS, LAYERS, make_base, make_inputs

from cmoe.modeling.base import find_layers, resuming
from cmoe.modeling.growing import GrowingVLM


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_it_computes_its_own_layers_alone_and_ends_in_the_same_bits(family: str) -> None:
    model = GrowingVLM(make_base(family), gates="residual", attention=2)
    generator = torch.Generator().manual_seed(7)
    for p in model.grow("one", dict.fromkeys(range(LAYERS), 2), rank=4, lora_alpha=8, seed=1):
        p.add_(torch.randn(p.shape, generator=generator).to(p))
    model.eval()
    inputs, computed = make_inputs(family), list[int]()
    passes: list[dict[int, int]] = [
        {},
        *({layer: kept} for layer in range(LAYERS) for kept in (1, 0)),
    ]
    whole = [model(inputs, "one", kept=kept).logits for kept in passes]
    assert len({logits.sum().item() for logits in whole}) == len(passes), "each is another pass"
    hooks = [
        ffn.register_forward_pre_hook(lambda ffn, _: computed.append(ffn.layer))
        for ffn in model.ffns
    ]
    with resuming(model.base) as start_at:
        for kept, logits in zip(passes, whole, strict=True):
            begin = min(kept, default=0)
            start_at(begin)
            computed.clear()
            again = model(inputs, "one", kept=kept, use_cache=False).logits
            assert torch.equal(again, logits)
            assert computed == [*range(begin, LAYERS)]
    for hook in hooks:
        hook.remove()
    assert torch.equal(model(inputs, "one").logits, whole[0]), "then passes are whole again"
    assert not any("forward" in vars(layer) for layer in find_layers(model.base))
