"""Nothing stays behind on the CPU: the network and its locator on a device that pretends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from support.pretended import THERE, Pretended
from support.tiny_models import make_base, make_inputs

from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.locator import locate, make_bank
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import LocatorConfig, Score

SMALL = LocatorConfig(hidden=16, latent=4, steps=20, batch_size=8)
SCORES = get_args(Score)


def test_the_pretended_device_refuses_what_a_gpu_refuses() -> None:
    with Pretended():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert (here.device.type, (there + 1).device) == ("cpu", THERE)
        assert there[torch.tensor([0, 2])].device == THERE
        assert torch.equal(there.cpu(), here)
        for mixed in (lambda: here + there, lambda: here[there.long()], lambda: there.numpy()):
            with pytest.raises((RuntimeError, TypeError), match=r"same device|indices|numpy"):
                mixed()
    assert torch.ones(1).device.type == "cpu"


@pytest.mark.parametrize("score", SCORES)
def test_entries_are_fitted_and_scored_where_the_features_are(score: Score) -> None:
    """The same as on the CPU, and each task behind the first as well as it."""

    def found(device: str) -> Any:
        bank, generator = make_bank(replace(SMALL, score=score)), torch.Generator().manual_seed(0)
        for task in range(3):
            features = torch.randn(24, 8, generator=generator) + 3 * task
            entry = bank.fit(features.to(device), seed=task)
            assert {t.device.type for t in entry.values()} == {"cpu"}
            bank.append(entry)
            location = locate(bank, features.to(device))
        assert location.unknown.device.type == bank.limits.device.type == device
        # A service may score on another device than before.
        return location.scores.cpu(), locate(bank, features).scores

    wanted, _ = found("cpu")
    with Pretended():
        there, here = found("cuda")
        torch.testing.assert_close(there, wanted)
        torch.testing.assert_close(here, wanted)


@pytest.mark.parametrize(
    ("score", "placement", "dtype"),
    [
        ("z", "front", torch.float32),
        ("raw", "inline", torch.bfloat16),
        ("mahalanobis", "front", torch.bfloat16),
        ("mahalanobis", "inline", torch.float32),
    ],
)
def test_a_model_lives_its_whole_life_there(
    score: Score, placement: Any, dtype: torch.dtype
) -> None:
    """Learned, committed, read again, located, mixed and answered: two tasks and what they say."""

    def lived(device: str) -> Any:
        locator = replace(SMALL, score=score, layer=1, pooling="mean", placement=placement)
        model = GrowingVLM(make_base().to(dtype), locator=locator).to(device)
        inputs = {n: t.to(device) for n, t in make_inputs(batch=9).items()}
        labelled = inputs | {"labels": inputs["input_ids"]}
        primitives = []
        for index, task in enumerate(("one", "two")):
            parameters = model.grow(task, {2: 1, 3: 2}, rank=8, lora_alpha=8, seed=index)
            out = model(labelled, index, record=True)
            gradients = torch.autograd.grad(out.loss + out.balance_loss, parameters)
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    p.sub_(g.to(device), alpha=0.1)
            primitives.append(model.commit(model.bank.fit(model.features(inputs), seed=index)))
            with torch.no_grad():
                located = model(inputs)
        with torch.no_grad():
            mixed = model(inputs, [0, 1, BASE] * 3).logits
        again = GrowingVLM(make_base().to(dtype), locator=locator).to(device)
        again.append(*primitives)
        with torch.no_grad():
            assert torch.equal(again(inputs, 1).logits, model(inputs, 1).logits)
        model.generate(inputs, max_new_tokens=2, do_sample=False)
        assert mixed.device.type == located.location.scores.device.type == device
        similar = [f.similarity().cpu() for f in model.ffns[2:]]
        return mixed.cpu(), located.logits.cpu(), located.location.scores.cpu(), similar

    wanted = lived("cpu")
    with Pretended():
        torch.testing.assert_close(lived("cuda"), wanted)
