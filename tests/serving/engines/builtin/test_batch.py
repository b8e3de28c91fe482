"""Rows of a batch share no more padding than the longest of them needs."""

from __future__ import annotations

from support.mini_store import collator

from cmoe.data.samples import Sample
from cmoe.modeling.growing import GrowingVLM
from cmoe.serving.engines.builtin.batch import Batch


def test_padding_goes_when_the_longest_leaves(model: GrowingVLM, samples: list[Sample]) -> None:
    prompts = sorted(
        (dict(collator().prompts([s])) for s in samples), key=lambda p: p["input_ids"].shape[1]
    )
    rows = Batch(model, pad=0)
    rows.join([prompts[-1]], [0])
    rows.join([prompts[0]], [1])
    assert rows._mask.shape[1] == prompts[-1]["input_ids"].shape[1]
    rows.keep([1])
    assert rows._mask.shape == prompts[0]["input_ids"].shape
    assert bool(rows._mask.all())
    rows.keep([])
    assert len(rows) == 0
