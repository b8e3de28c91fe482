"""Who gets which sample: every epoch is a permutation, every slice in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cmoe.data.batches import slices, training_order


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 40), steps=st.integers(1, 12), batch=st.integers(1, 50))
def test_every_epoch_is_a_permutation(samples: int, steps: int, batch: int) -> None:
    order = training_order(samples, steps, batch, "0/GQA/train")
    assert order.shape == (steps, batch)
    flat = order.flatten()
    for start in range(0, len(flat), samples):
        epoch = flat[start : start + samples]
        assert len(set(epoch.tolist())) == len(epoch)
        assert set(epoch.tolist()) <= set(range(samples))
    assert np.array_equal(order, training_order(samples, steps, batch, "0/GQA/train"))


def test_orders_differ_by_epoch_and_by_seed() -> None:
    epochs = training_order(20, 4, 20, "0/GQA/train")
    others = [training_order(20, 4, 20, seed) for seed in ("1/GQA/train", "0/VQAv2/train", "0")]
    rows = {tuple(row) for order in (epochs, *others) for row in order.tolist()}
    assert len(rows) == 16
    assert tuple(range(20)) not in rows


def test_slices_cover_all_in_order() -> None:
    for count in range(41):
        for size in range(1, 10):
            cut = slices(count, size)
            assert [i for part in cut for i in part] == list(range(count))
            assert all(len(part) == size for part in cut[:-1])
            assert all(1 <= len(part) <= size for part in cut)
