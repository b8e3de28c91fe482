"""A store gives back the model that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_models import make_base, make_inputs
from torch import Tensor

from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import LocatorConfig
from cmoe.store.log import Store, StoreError
from cmoe.store.model import create_store, load_model

LOCATOR = LocatorConfig(layer=2, pooling="mean_text", hidden=16, latent=4, steps=20, batch_size=8)


def learn(model: GrowingVLM, store: Store, task: str, seed: int) -> None:
    parameters = model.grow(task, {seed % 4: 1, 3: 2}, rank=4, lora_alpha=8, seed=seed)
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    inputs = make_inputs(batch=8, seed=seed)
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs | {"labels": inputs["input_ids"]}, task).loss.backward()
        optimizer.step()
    entry = model.bank.fit(model.features(inputs), seed=seed)
    store.append(model.commit(entry, decision={"layers": [seed % 4, 3]}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_model_gives_the_writers_logits_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    writer = GrowingVLM(make_base().to(dtype), top_k=2, locator=LOCATOR)
    store = create_store(tmp_path / "store", writer, name="tiny", revision="0", config={"seed": 0})
    inputs = make_inputs(batch=4)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    stages: list[dict[str, Tensor]] = []
    tasks = ["one", "two", "three"]
    for seed, task in enumerate(tasks):
        if dtype is torch.float32:
            learn(writer, store, task, seed)
        else:
            writer.grow(task, {seed: 1}, rank=8, lora_alpha=8, seed=seed)
            entry = writer.bank.fit(writer.features(inputs).repeat(3, 1), seed=seed)
            store.append(writer.commit(entry))
        with torch.no_grad():
            stages.append({t: writer(inputs, t).logits for t in tasks[: seed + 1]})

    for prefix in (*range(1, 4), None):
        reader = load_model(Store.open(tmp_path / "store"), make_base().to(dtype), prefix)
        stage = stages[-1 if prefix is None else prefix - 1]
        assert reader.tasks == tuple(stage)
        with torch.no_grad():
            for task, logits in stage.items():
                assert torch.equal(reader(inputs, task).logits, logits)
    with torch.no_grad():
        mixed = ["two", BASE, "three", "one"]
        assert torch.equal(reader(inputs, mixed).logits, writer(inputs, mixed).logits)
    assert torch.equal(reader.locate(inputs).scores, writer.locate(inputs).scores)


def test_another_base_and_a_missing_stage_are_refused(tmp_path: Path) -> None:
    model = GrowingVLM(make_base(), locator=LOCATOR)
    store = create_store(tmp_path, model, name="tiny", revision="0", config={})
    learn(model, store, "one", 0)
    with pytest.raises(StoreError, match=r"stream\.json: made for base tiny@0 .*load that base"):
        load_model(store, make_base(seed=1))
    with pytest.raises(StoreError, match="has 1 primitives; can't load 2"):
        load_model(store, make_base(), prefix=2)
    assert load_model(store, make_base(), prefix=0).tasks == ()
