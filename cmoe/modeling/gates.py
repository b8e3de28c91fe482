"""How gates are made of a router's probabilities, and the loss that balances them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cmoe.modeling.experts import Gates
from cmoe.modeling.settings import slots


class Split(NamedTuple):
    """A task's experts by whether they work for all its tokens: indices of those, of the others."""

    always: Tensor
    others: Tensor
    is_always: Tensor  # [E] bool


class Mixed(NamedTuple):
    """The routers of a batch of several tasks at one layer, and how they choose.

    Attributes:
        rows: [B, E, d] of frozen routers, the samples' first `counts` of them.
        counts: [B] experts that a sample's task knows; 0 without a router.
        always: [B, E] bool, those that always work.
        added: [B] bool, whether the others are added to them (see `add_to`).
        used: [B] experts of a token.
        most: The largest of those.
    """

    rows: Tensor
    counts: Tensor
    always: Tensor
    added: Tensor
    used: Tensor
    most: int


def choose_experts(probs_ne: Tensor, top_k: int, *, renormalize: bool = True) -> Gates:
    """Gates of each token: the top `k = min(top_k, E)` probabilities, renormalised in the paper.

    With one expert a token the gate is the probability itself: renormalised it would be 1, and
    the router would get no gradient.
    """
    count = probs_ne.shape[-1]
    k = min(top_k, count)
    if k == count:
        experts = torch.arange(count, device=probs_ne.device).expand_as(probs_ne)
        return Gates(probs_ne, experts, count)
    weights, experts = probs_ne.topk(k, dim=-1)
    if k > 1 and renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return Gates(weights, experts, count)


def add_to(probs_ne: Tensor, always_a: Tensor, others_o: Tensor, top_k: int) -> Gates:
    """Gates of tokens for which some experts always work, with gate 1.

    The likeliest others are added with gate `p_e - 1/E`: nothing where the router prefers none, as
    at its start, and a gradient there too.

    Args:
        probs_ne: Of all experts.
        always_a: Indices of those that always work.
        others_o: Indices of the others.
        top_k: Experts per token, those that always work included; none is added beyond it.
    """
    tokens, count = probs_ne.shape
    added = slots(count, len(always_a), top_k) - len(always_a)
    weights, places = probs_ne.index_select(1, others_o).topk(added, dim=-1)
    gates = torch.cat([weights - 1 / count, weights.new_ones(tokens, len(always_a))], 1)
    experts = torch.cat([others_o[places], always_a.expand(tokens, -1)], 1)
    return Gates(gates, experts, count)


def choose_mixed(probs_ne: Tensor, mixed: Mixed, top_k: int) -> Gates:
    """As `choose_experts` and `add_to`, for the tokens of samples of several tasks.

    Args:
        probs_ne: 0 for experts that a token's task doesn't know.
        mixed: The samples' tasks.
        top_k: Experts per token.
    """
    tokens = len(probs_ne) // len(mixed.counts)
    counts_n, always_ne, added_n, used_n = (
        each.repeat_interleave(tokens, 0)
        for each in (mixed.counts, mixed.always, mixed.added, mixed.used)
    )
    experts = probs_ne.masked_fill(always_ne, 2.0).topk(mixed.most, dim=-1).indices
    places = torch.arange(mixed.most, device=probs_ne.device)
    probs_nk = probs_ne.gather(1, experts) * (places < used_n[:, None])
    whole_n1 = probs_nk.sum(1, keepdim=True) if top_k > 1 else torch.ones_like(probs_nk[:, :1])
    weights = probs_nk / whole_n1.clamp_min(torch.finfo(probs_nk.dtype).tiny)
    added = torch.where(probs_nk > 0, probs_nk - 1 / counts_n.clamp_min(1)[:, None], 0)
    added = added.masked_fill(always_ne.gather(1, experts), 1.0)
    return Gates(added.where(added_n[:, None], weights), experts, probs_ne.shape[1])


def balance_loss(probs_ne: Tensor, experts_nk: Tensor, counts_n: Tensor) -> Tensor:
    """Switch Transformers' balance loss `n * sum_e f_e P_e` of one layer (arXiv 2101.03961, eq. 4).

    `f_e` is the share of the tokens' `k` slots that go to expert `e`, `P_e` its mean probability:
    1 when both are uniform, whatever `k` is.

    Args:
        probs_ne: Router probabilities, fp32.
        experts_nk: Chosen experts.
        counts_n: 1 for tokens that count, 0 for padding.
    """
    share_n = counts_n / counts_n.sum().clamp_min(1.0)
    slots_ne = torch.zeros_like(probs_ne).scatter(1, experts_nk, 1.0 / experts_nk.shape[1])
    return probs_ne.shape[1] * ((share_n @ slots_ne.detach()) * (share_n @ probs_ne)).sum()
