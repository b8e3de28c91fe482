"""How each row of a batch takes its next token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-5  # a temperature up to this takes the likeliest token, as 0 does
NARROWEST = 1e-9  # a `top_p` up to this does so, too


@dataclass(frozen=True)
class Choice:
    """How a row takes its next token.

    Attributes:
        temperature: As of `Sampling`.
        top_p: As of `Sampling`.
        random: Gives the row's own next number, from 0 to 1.
    """

    temperature: float
    top_p: float
    random: Callable[[], float]


def draw(logits_bv: Tensor, choices: Sequence[Choice]) -> list[int]:
    """The next token of every row: the likeliest, or one drawn by the row's own numbers.

    What a row draws depends on its logits and its seed alone, whatever runs beside it.
    """
    tokens = logits_bv.argmax(1)
    rows = [i for i, choice in enumerate(choices) if choice.temperature > COLDEST]
    if rows:
        tokens[rows] = _drawn(logits_bv[rows].float(), [choices[i] for i in rows])
    taken: list[int] = tokens.tolist()
    return taken


def _drawn(logits_bv: Tensor, choices: Sequence[Choice]) -> Tensor:
    def column(values: Iterator[float]) -> Tensor:
        return torch.tensor([*values], device=logits_bv.device)[:, None]

    temperature = column(c.temperature for c in choices)
    probability_bv, order_bv = (logits_bv / temperature).softmax(1).sort(1, descending=True)
    likelier_bv = probability_bv.cumsum(1) - probability_bv  # of all tokens in front of each
    top_p = column(max(c.top_p, NARROWEST) for c in choices)  # the likeliest token always stays
    cumulative_bv = (probability_bv * (likelier_bv < top_p)).cumsum(1)
    drawn = column(c.random() for c in choices) * cumulative_bv[:, -1:]
    index = (cumulative_bv <= drawn).sum(1, keepdim=True).clamp_max(logits_bv.shape[1] - 1)
    return order_bv.gather(1, index)[:, 0]
