"""A growing model that has learned a short stream of tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from support.tiny_models import make_base, make_inputs
from torch import Tensor

from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.settings import GateForm, LocatorConfig

SMALL = LocatorConfig(hidden=16, latent=4, steps=40, batch_size=16)


# Layers that each task of the stream adds experts to, and how many: some layers start late, one
# task adds nothing at all.
STREAM: dict[str, Mapping[int, int]] = {
    "first": {0: 1, 2: 2},
    "second": {2: 1, 3: 3},
    "third": {},
    "fourth": {0: 4, 1: 1, 2: 2, 3: 1},
}


# What some of them build on, where the model has adapters of attention.
FOUNDATIONS = {"third": "second", "fourth": "third"}

RANKS = {"first": 8, "second": 4, "third": 8, "fourth": 8}


def randomise(model: GrowingVLM, seed: int) -> None:
    """Stand in for training: weights at which every expert and router matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=generator).to(p))


def learn(model: GrowingVLM, task: str, locator: bool = False) -> Primitive:
    builds_on = FOUNDATIONS.get(task) if model.attention else None
    seed, rank = len(model.tasks), RANKS[task]
    model.grow(task, STREAM[task], rank=rank, lora_alpha=8, seed=seed, builds_on=builds_on)
    randomise(model, seed=len(model.tasks))
    entry: Mapping[str, Tensor] = {}
    if locator:
        seed = 10 + len(model.tasks)
        features = torch.cat([model.features(make_inputs(batch=8, seed=seed)) for _ in range(2)])
        entry = model.bank.fit(features, seed=seed)
    return model.commit(entry)


def grown(
    family: str = "llava",
    locator: LocatorConfig | None = None,
    gates: GateForm = "renormalized",
    attention: int = 0,
    top_k: int = 2,
) -> GrowingVLM:
    model = GrowingVLM(
        make_base(family), top_k=top_k, gates=gates, attention=attention, locator=locator
    )
    for task in STREAM:
        learn(model, task, locator=locator is not None)
    return model
