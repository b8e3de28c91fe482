"""GrowingVLM refuses wrong use with what would be right, and nothing is added."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.grown import SMALL, STREAM, grown, learn, randomise
from support.tiny_models import CONFIGS, WIDTH, make_base, make_inputs
from transformers import AutoConfig, AutoModelForImageTextToText, MixtralConfig

from cmoe.modeling.base import UnsupportedModelError
from cmoe.modeling.growing import GrowingVLM


def test_inline_placement_above_the_first_experts_is_refused() -> None:
    model = grown(locator=replace(SMALL, layer=2, placement="inline"))
    with pytest.raises(ValueError, match="feature is taken at layer 2 and layer 0 has experts"):
        model(make_inputs())
    with pytest.raises(ValueError, match="-1 is the decoder's output, which all experts are below"):
        replace(SMALL, layer=-1, placement="inline")


def test_a_model_without_linear_ffns_is_refused_with_the_names_looked_for() -> None:
    mixtral = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    config = AutoConfig.for_model("llava", text_config=mixtral, vision_config=vision())
    with pytest.raises(UnsupportedModelError, match=r"layer 0 .*looked for mlp, feed_forward, ffn"):
        GrowingVLM(AutoModelForImageTextToText.from_config(config))
    gated = make_base()
    gated.get_decoder().layers[1].mlp.gate = torch.nn.Parameter(torch.ones(4, WIDTH))
    with pytest.raises(UnsupportedModelError, match=r"layer 1 .*no FFN made of linear maps alone"):
        GrowingVLM(gated)
    with pytest.raises(UnsupportedModelError, match="no list of layers; looked for layers, h"):
        GrowingVLM(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def vision() -> dict[str, object]:
    config: dict[str, object] = CONFIGS["llava"][0]().vision_config.to_dict()
    return config


def test_wrong_use_is_refused_with_what_would_be_right() -> None:
    model, inputs = grown(), make_inputs()
    with pytest.raises(ValueError, match="2 tasks for a batch of 3"):
        model(inputs, ["first", "second"])
    with pytest.raises(ValueError, match="unknown task 'fifth'; tasks: 0 first, 1 second"):
        model(inputs, "fifth")
    with pytest.raises(ValueError, match="unknown task 4"):
        model(inputs, 4)
    with pytest.raises(ValueError, match="4 tasks are learned and 0 have a locator entry"):
        model(inputs)
    with pytest.raises(ValueError, match="already learned"):
        model.grow("first", {}, rank=8, lora_alpha=8, seed=0)
    with pytest.raises(ValueError, match=r"no decoder layer \[4\]"):
        model.grow("fifth", {4: 1}, rank=8, lora_alpha=8, seed=0)
    with pytest.raises(ValueError, match=r"layers\.0 has shape \(2, 32\), this task needs \(6"):
        model.grow(
            "fifth", {0: 1}, rank=8, lora_alpha=8, seed=0, init={"layers.0": torch.ones(2, 32)}
        )
    with pytest.raises(ValueError, match=r"rank 0 and \{0: 1\} experts"):
        model.grow("fifth", {0: 1}, rank=0, lora_alpha=8, seed=0)
    with pytest.raises(ValueError, match="no task is being learned"):
        model.commit({})
    model.grow("fifth", {0: 1}, rank=8, lora_alpha=8, seed=0)
    with pytest.raises(ValueError, match="'fifth' is still being learned"):
        model.grow("sixth", {}, rank=8, lora_alpha=8, seed=0)
    with pytest.raises(ValueError, match=r"locator\.layer is 9; this base has 0 to 3"):
        GrowingVLM(make_base(), locator=replace(SMALL, layer=9))
    with pytest.raises(ValueError, match="top_k is 0"):
        GrowingVLM(make_base(), top_k=0)
    with pytest.raises(ValueError, match="attention is -1; a rank, or 0 for no adapters"):
        GrowingVLM(make_base(), attention=-1)
    with pytest.raises(ValueError, match="gates is 'tanh'; renormalized, softmax, residual"):
        GrowingVLM(make_base(), gates="tanh")  # type: ignore[arg-type]
    model.discard()
    with pytest.raises(ValueError, match="'fifth' builds on 'sixth', which isn't learned; learned"):
        model.grow("fifth", {0: 1}, rank=8, lora_alpha=8, seed=0, builds_on="sixth")
    assert not [p for p in model.parameters() if p.requires_grad]


def test_a_primitive_that_does_not_fit_is_refused_and_nothing_is_added() -> None:
    donor = GrowingVLM(make_base())
    first, second = learn(donor, "first"), learn(donor, "second")
    name = "layers.2.up_proj.B"
    crooked = replace(first, experts={**first.experts, name: first.experts[name][:, :-1]})
    short = replace(second, routers={**second.routers, "layers.3": torch.ones(1, WIDTH)})
    for primitives, match in (
        ([crooked], r"task 'first': layers\.2\.up_proj\.B has shape \(2, 47, 8\)"),
        ([first, short], r"task 'second': layers\.3 has shape \(1, 32\)"),
        ([second], "task 'second': layers"),
        ([first, first], "task 'first' is already learned"),
    ):
        model = GrowingVLM(make_base())
        with pytest.raises(ValueError, match=match):
            model.append(*primitives)
        assert model.tasks == ()
        assert all(len(f.frozen) == 0 for f in model.ffns)


def test_a_refused_locator_entry_does_not_cost_the_training() -> None:
    model, inputs = GrowingVLM(make_base(), locator=SMALL), make_inputs()
    model.grow("first", STREAM["first"], rank=8, lora_alpha=8, seed=0)
    randomise(model, seed=0)
    with torch.no_grad():
        trained = model(inputs, "first").logits
        with pytest.raises(ValueError, match="locator entry lacks std"):
            model.commit({"mean": torch.ones(WIDTH)})
        assert torch.equal(model(inputs, "first").logits, trained)
        entry = model.bank.fit(torch.randn(20, WIDTH), seed=0)
        model.commit(entry)
        torch.testing.assert_close(model(inputs, "first").logits, trained, rtol=1e-5, atol=1e-5)
    assert model.tasks == ("first",)
    assert len(model.bank) == 1
