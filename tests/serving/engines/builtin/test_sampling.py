"""Rows draw their tokens by the probabilities that temperature and top_p give."""

from __future__ import annotations

import torch

from cmoe.serving.engines.builtin.sampling import Choice, draw


def test_a_row_draws_by_its_own_chances() -> None:
    """At temperature t a token has the chance softmax(logits / t), cut at top_p."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    even = [(i + 0.5) / 4000 for i in range(4000)]
    for warmth, top_p in ((1.0, 1.0), (2.0, 1.0), (1.0, 0.7)):
        numbers = iter(even)
        choice = Choice(warmth, top_p, lambda numbers=numbers: next(numbers))
        counts = torch.zeros(4)
        for _ in even:
            counts[draw(logits, [choice])[0]] += 1
        expected = (logits[0] / warmth).softmax(0)
        if top_p < 1:  # 0.64 and 0.24 come to more than 0.7
            expected = expected * torch.tensor([0.0, 1.0, 1.0, 0.0])
            expected = expected / expected.sum()
        torch.testing.assert_close(counts / len(even), expected, atol=2e-3, rtol=0)
    assert draw(logits, [Choice(0.0, 1.0, lambda: 0.0)]) == [2]
    assert draw(logits, [Choice(2.0, 0.0, lambda: 0.99)]) == [2], "none but the likeliest"
