"""A quantised base: transformers' and PEFT's own are the judges, on the mini base."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from support.grown import SMALL, randomise
from torch import Tensor, nn

from cmoe.exports.folders import write_model
from cmoe.exports.loras import loras
from cmoe.modeling.base import count_parameters, find_decoder, find_ffns, fingerprint
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import UnsupportedModelError, load_base, load_shape
from cmoe.modeling.settings import MINI_BASE, ModelConfig, Quantization
from cmoe.store.log import Store, StoreError
from cmoe.store.model import create_store, load_model

pytest.importorskip("bitsandbytes")
KINDS: tuple[Quantization, ...] = get_args(Quantization)
KEPT = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
FFN = r".*language_model.*\.mlp\.\w+_proj"


def load(kind: Quantization | None, dtype: torch.dtype = torch.float32) -> Any:
    return load_base(str(MINI_BASE), quantization=kind, dtype=dtype)[0]


def loaded_by_transformers(kind: Quantization, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    settings: dict[str, Any] = {"load_in_8bit": True}
    if kind == "nf4":
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        settings["bnb_4bit_compute_dtype"] = dtype
    told = BitsAndBytesConfig(**settings, llm_int8_skip_modules=KEPT)
    model = AutoModelForImageTextToText.from_pretrained(
        str(MINI_BASE), dtype=dtype, quantization_config=told
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def inputs(seed: int = 0, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20, 200, (batch, 12), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_and_answers_are_those_of_transformers_own_quantisation(
    kind: Quantization, dtype: torch.dtype
) -> None:
    mine, theirs = load(kind, dtype), loaded_by_transformers(kind, dtype)
    expected = dict(theirs.named_parameters())
    assert [name for name, _ in mine.named_parameters()] == list(expected)
    for name, p in mine.named_parameters():
        assert p.dtype == expected[name].dtype, name
        assert torch.equal(p, expected[name]), name
    packed = {name for name, p in mine.named_parameters() if not p.is_floating_point()}
    maps = {id(m.weight) for m in find_decoder(mine).modules() if isinstance(m, nn.Linear)}
    assert packed == {name for name, p in mine.named_parameters() if id(p) in maps}
    assert torch.equal(mine(**inputs()).logits, theirs(**inputs()).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_one_expert_with_gate_one_is_qlora(kind: Quantization) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt

    rank, alpha = 4, 8.0
    model = GrowingVLM(load(kind))
    layers = dict.fromkeys(range(len(model.ffns)), 1)
    model.grow("only", layers, rank=rank, lora_alpha=alpha, seed=0)
    for ffn in model.ffns:
        for linear in ffn.maps.values():
            assert linear.B is not None
            nn.init.normal_(linear.B, std=0.1, generator=torch.Generator().manual_seed(ffn.layer))
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=FFN)
    peft = get_peft_model(loaded_by_transformers(kind, torch.float32), config).eval()
    adapted = {
        tuple(name.split(".layers.")[1].split(".")): module
        for name, module in peft.named_modules()
        if isinstance(module, (Linear4bit, Linear8bitLt))
    }
    assert len(adapted) == 3 * len(model.ffns)
    pairs = []
    for (layer, _, leaf), module in adapted.items():
        linear = model.ffns[int(layer)].maps[leaf]
        A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
        with torch.no_grad():
            A.copy_(linear.A)
            B.copy_(linear.B.T)
        pairs.append((linear, A, B))

    with torch.no_grad():  # as evaluation does before a training
        model(inputs(1), "only")
    mine, theirs = model(inputs(), "only"), peft(**inputs())
    # Where 8 bits are rounded anew a last bit of an activation may become a step of 1/127.
    near = {"rtol": 1e-4, "atol": 1e-5} if kind == "nf4" else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(mine.logits, theirs.logits, **near)
    mine.loss.backward()
    theirs.loss.backward()
    for linear, A, B in pairs:
        for got, wanted in ((linear.A.grad, A.grad), (linear.B.grad, B.grad.T)):
            assert wanted.norm() > 0
            assert (got - wanted).norm() <= (1e-4 if kind == "nf4" else 0.05) * wanted.norm()


def learned(kind: Quantization, folder: Path) -> tuple[GrowingVLM, Store, Mapping[str, Tensor]]:
    """A store of two tasks on a quantised base, and the first's logits before the second."""
    model = GrowingVLM(load(kind), locator=SMALL, attention=2)
    config = {"model": vars(ModelConfig(quantization=kind))}
    store = create_store(folder, model, name="mini", revision="default", config=config)
    logits = {}
    for seed, task in enumerate(("first", "second")):
        model.grow(task, {1: 1, 4: 1}, rank=4, lora_alpha=8, seed=seed)
        randomise(model, seed)
        features = torch.cat(
            [model.features({"input_ids": inputs(n, 8)["input_ids"]}) for n in (0, 1)]
        )
        store.append(model.commit(model.bank.fit(features, seed=seed)))
        logits[task] = model(inputs(), task).logits
    return model, store, logits


@pytest.mark.parametrize("kind", KINDS)
def test_an_earlier_task_keeps_its_bits_and_a_loaded_store_has_the_writers(
    kind: Quantization, tmp_path: Path
) -> None:
    model, store, logits = learned(kind, tmp_path)
    for maps in (model.ffns[1].maps, model.attentions[1].maps):
        assert {m.frozen_A.dtype for m in maps.values()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(model(inputs(), "first").logits, logits["first"])
        again = load_model(Store.open(store.url), load(kind))
        for task in ("first", "second"):
            assert torch.equal(again(inputs(), task).logits, logits[task])
        base = load(kind)
        assert torch.equal(again(inputs(), -1).logits, base(**inputs()).logits)
    with pytest.raises(StoreError, match=f"quantised as {kind}, not as it is.*quantization {kind}"):
        load_model(store, load(None))
    other = next(k for k in KINDS if k != kind)
    with pytest.raises(StoreError, match=f"quantised as {kind}, not quantised as {other}"):
        load_model(store, load(other))


def test_a_store_of_the_plain_base_refuses_a_quantised_one(tmp_path: Path) -> None:
    model = GrowingVLM(load(None))
    store = create_store(tmp_path, model, name="mini", revision="default", config={})
    with pytest.raises(StoreError, match=r"as it is, not quantised as nf4; .*quantization null"):
        load_model(store, load("nf4"))


@pytest.mark.parametrize("kind", KINDS)
def test_digest_and_counts_are_of_what_was_quantised(kind: Quantization) -> None:
    plain = load(None)
    for dtype in (torch.float32, torch.bfloat16):
        assert fingerprint(load(kind, dtype)) == f"{fingerprint(plain)}-{kind}"
    assert count_parameters(load(kind)) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_answers_as_its_task_did_on_the_rounded_weights(
    kind: Quantization, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText

    _, store, logits = learned(kind, tmp_path / "store")
    shape = lambda: load_shape(str(MINI_BASE))  # noqa: E731
    found = loras(store, store.header.settings, shape, count=1, task="first")
    write_model(store, found["first"](), tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(str(tmp_path / "merged"))
    expected = logits["first"]
    apart = (merged(**inputs()).logits - expected).norm() / expected.norm()
    assert apart < (1e-4 if kind == "nf4" else 0.05)  # LLM.int8() rounds activations, too


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_keep_nothing_of_a_quantised_map(kind: Quantization) -> None:
    base = load(kind)
    site = find_ffns(base)[0]
    assert not site.module.state_dict()
    assert not site.module.load_state_dict({}, strict=False).unexpected_keys


def test_nothing_is_said_at_each_map(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load("int8")(**inputs())
    assert not [r for r in caplog.records if r.name.startswith("bitsandbytes")]


def test_a_base_that_is_quantised_already_is_refused(tmp_path: Path) -> None:
    theirs = loaded_by_transformers("nf4", torch.float32)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match=r"quantised already .bitsandbytes.*quantization"
    ):
        load_base(str(tmp_path))
