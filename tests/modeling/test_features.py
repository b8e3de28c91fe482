"""What a growing model's locator sees of the frozen base, and in which pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.grown import SMALL, grown, learn, randomise
from support.tiny_models import LAYERS, make_base, make_inputs

from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.routers import BASE

pytestmark = pytest.mark.usefixtures("each_way")


@pytest.mark.parametrize("pooling", ["last", "mean", "mean_text"])
@pytest.mark.parametrize("layer", [0, LAYERS - 1, LAYERS, -1])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
@torch.no_grad()
def test_features_are_the_frozen_bases_hidden_states(family: str, layer: int, pooling: str) -> None:
    base, inputs = make_base(family), make_inputs(family)
    states = base(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    hidden = states[layer]
    kept = inputs["attention_mask"].bool()
    if pooling == "mean_text":
        kept = kept & (inputs["input_ids"] != base.config.image_token_id)
    elif pooling == "last":  # the prompts are padded on the left
        kept = torch.zeros_like(kept)
        kept[:, -1] = True
    wanted = torch.stack([h[k].mean(0) for h, k in zip(hidden, kept, strict=True)])
    model = GrowingVLM(base, locator=replace(SMALL, layer=layer, pooling=pooling))
    for task in ("first", "second"):
        learn(model, task)
    torch.testing.assert_close(model.features(inputs), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_on_either_side_gives_the_same_feature() -> None:
    model = GrowingVLM(make_base(), locator=replace(SMALL, pooling="last"))
    left = make_inputs()
    right = dict(left)
    for name in ("input_ids", "attention_mask"):
        rows = [
            torch.cat([row[mask.bool()], row[~mask.bool()]])
            for row, mask in zip(left[name], left["attention_mask"], strict=True)
        ]
        right[name] = torch.stack(rows)
    torch.testing.assert_close(model.features(left), model.features(right), rtol=1e-4, atol=1e-4)


def test_the_features_pass_stops_at_the_features_layer() -> None:
    model, ran = GrowingVLM(make_base(), locator=replace(SMALL, layer=2)), []
    for i, layer in enumerate(model.base.get_decoder().layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.base.lm_head.register_forward_hook(lambda *_: ran.append(-1))
    model.features(make_inputs())
    assert ran == [0, 1]


@pytest.mark.parametrize(("layer", "passes"), [(0, 1), (1, 2)])
@torch.no_grad()
def test_the_first_layers_input_is_taken_in_the_answering_pass(layer: int, passes: int) -> None:
    model = grown(locator=replace(SMALL, layer=layer, pooling="mean"))
    calls: list[int] = []
    model.base.get_decoder().register_forward_pre_hook(lambda *_: calls.append(0))
    assert model(make_inputs()).location is not None
    assert len(calls) == passes


@torch.no_grad()
def test_inline_and_front_placement_give_the_same_tasks_and_answers() -> None:
    upper = {2: 2, 3: 1}
    models = {}
    for placement in ("front", "inline"):
        config = replace(SMALL, layer=2, pooling="mean_text", placement=placement)
        models[placement] = model = GrowingVLM(make_base(), locator=config)
        for t in range(3):
            model.grow(f"task{t}", upper, rank=8, lora_alpha=8, seed=t)
            randomise(model, seed=t)
            model.commit(model.bank.fit(model.features(make_inputs(batch=12, seed=t)), seed=t))
    inputs = make_inputs(batch=12, seed=1)
    calls: list[int] = []
    models["inline"].base.get_decoder().layers[0].register_forward_hook(lambda *_: calls.append(0))
    front, inline = (models[p](inputs) for p in ("front", "inline"))
    assert len(calls) == 1, "no second pass"
    assert torch.equal(front.location.tasks, inline.location.tasks)
    torch.testing.assert_close(front.location.scores, inline.location.scores)
    torch.testing.assert_close(front.logits, inline.logits)
    named = models["front"](inputs, front.location.tasks.tolist())
    assert torch.equal(named.logits, front.logits)
    for kwargs in ({"do_sample": False}, {"num_beams": 2, "do_sample": False}):
        told, found = (
            models[p].generate(inputs, max_new_tokens=4, **kwargs) for p in ("front", "inline")
        )
        assert told.tasks == found.tasks == tuple(front.location.tasks.tolist())
        assert torch.equal(told.sequences, found.sequences)

    for model in models.values():
        model.reject_unknown = True
        strange = dict(inputs)
        strange["input_ids"] = torch.where(inputs["input_ids"] > 7, 63, inputs["input_ids"])
        out = model(strange)
        assert out.location.unknown.any()
        wanted = out.location.tasks.masked_fill(out.location.unknown, BASE).tolist()
        assert torch.equal(out.logits, model(strange, wanted).logits)
