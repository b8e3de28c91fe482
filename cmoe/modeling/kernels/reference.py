"""What the kernels compute, in plain torch: their formulas, and how their tests judge them."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Rows(NamedTuple):
    """The stacked experts' rows that a batch may use: those of the first experts.

    Attributes:
        experts: [R] the expert of each row, ascending.
        scales: [R] fp32, its `lora_alpha / rank`.
        learned: Rows before this one are frozen, and get no gradient.
    """

    experts: Tensor
    scales: Tensor
    learned: int


class Choice(NamedTuple):
    """How a token's experts are chosen.

    Attributes:
        likeliest: How many are chosen by their probabilities.
        renormalized: Whether the gates of those are divided by their sum.
        always: [E] bool, experts that work for all tokens with gate 1; the others are added to
            them with gate `p - 1/E`. None where all are chosen by their probabilities.
    """

    likeliest: int
    renormalized: bool = False
    always: Tensor | None = None


class Routed(NamedTuple):
    """The experts of tokens.

    Attributes:
        gates: [n, E] fp32, 0 for those that don't work.
        probs: [n, E] fp32.
        chosen: [n, E] bool.
    """

    gates: Tensor
    probs: Tensor
    chosen: Tensor


def route(hidden_nd: Tensor, weight_ed: Tensor, choice: Choice) -> Routed:
    """Gates of all experts, from a router's logits in fp32."""
    probs_ne = F.linear(hidden_nd.float(), weight_ed.float()).softmax(-1)
    always_e = choice.always
    free_ne = probs_ne if always_e is None else probs_ne.masked_fill(always_e, -1.0)
    best_nk = free_ne.topk(choice.likeliest, dim=-1).indices
    chosen_ne = probs_ne.new_zeros(probs_ne.shape).scatter(1, best_nk, 1.0).bool()
    if always_e is not None:
        added_ne = (probs_ne - 1 / probs_ne.shape[1]) * chosen_ne
        return Routed(added_ne.masked_fill(always_e, 1.0), probs_ne, chosen_ne | always_e)
    gates_ne = probs_ne * chosen_ne
    if choice.renormalized:
        gates_ne = gates_ne / gates_ne.sum(-1, keepdim=True)
    return Routed(gates_ne, probs_ne, chosen_ne)


def shrink(u_ni: Tensor, As: tuple[Tensor, ...], gates_ne: Tensor, rows: Rows) -> list[Tensor]:
    """`(u A^T) * gates` [n, R] for maps that read the same input, each with its `A [R, in]`."""
    gates_nr = gates_ne.index_select(1, rows.experts) * rows.scales
    return [(F.linear(u_ni.float(), A.float()) * gates_nr).to(u_ni.dtype) for A in As]


def expand_swiglu(
    gate_nf: Tensor, up_nf: Tensor, h_gate_nr: Tensor, h_up_nr: Tensor, B_gate: Tensor, B_up: Tensor
) -> Tensor:
    """`silu(gate + h_gate B_gate) * (up + h_up B_up)` [n, f], rounded where torch rounds it."""
    dtype = gate_nf.dtype
    gate = (gate_nf.float() + h_gate_nr.float() @ B_gate.float()).to(dtype)
    up = (up_nf.float() + h_up_nr.float() @ B_up.float()).to(dtype)
    return F.silu(gate) * up
