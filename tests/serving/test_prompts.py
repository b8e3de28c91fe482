"""Prompts are batched as the base's own processor batches them."""

from __future__ import annotations

import torch
from support.mini_store import collator

from cmoe.data.padding import batched
from cmoe.data.samples import Sample


def test_joined_prompts_are_those_of_the_processor(samples: list[Sample]) -> None:
    whole = collator().prompts(samples[:5])
    made = batched([collator().prompts([s]) for s in samples[:5]], pad=0)
    assert made.keys() == whole.keys()
    assert all(torch.equal(made[name], whole[name]) for name in whole)
