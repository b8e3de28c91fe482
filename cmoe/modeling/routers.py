"""The tasks' routers of one FFN: gates, balance loss, and a record of who used which expert.

Routing is hierarchical (method, "Experts and routers"): the locator chooses a sample's task, and
that task's router chooses among the experts that existed when it was trained, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmoe.modeling.experts import Gates

BASE = -1  # the task of a sample that the base alone answers


class Usage(NamedTuple):
    """What one layer's router did with the non-padding tokens of a batch.

    Attributes:
        layer: The decoder layer.
        largest: [E] tokens whose largest gate is this expert's.
        gates: [E] sum of the gates over those tokens.
        balance: Balance loss, a scalar with gradients.
    """

    layer: int
    largest: Tensor
    gates: Tensor
    balance: Tensor


@dataclass
class Routing:
    """Which task's routers each sample of a forward pass uses.

    Attributes:
        tasks: Per sample an index into the tasks or `BASE`. On the host: shapes depend on it.
        ids: The same [B], on the device.
        tokens: [B, S] bool, tokens that count in the record; None counts all.
        record: Receives every layer's `Usage`; None records nothing.
        without: Layers whose experts of the task being learned are switched off: that task's
            router chooses among the older ones alone.
        gathered: Frozen routers of a mixed batch by layer, kept for all steps of a generation.
    """

    tasks: tuple[int, ...]
    ids: Tensor
    tokens: Tensor | None = None
    record: list[Usage] | None = None
    without: frozenset[int] = frozenset()
    gathered: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, tasks: Sequence[int], device: torch.device) -> Routing:
        """Tasks of a batch, to be routed on `device`."""
        return cls(tuple(tasks), torch.tensor(tasks, device=device))


class TaskRouters(nn.Module):
    """All tasks' routers of one layer.

    The frozen ones lie in one tensor, task behind task; the one being learned is a parameter.

    Args:
        layer: Index of the decoder layer.
        hidden_size: Width `d` of the FFN's input.
        top_k: Experts per token.
    """

    rows: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(self, layer: int, hidden_size: int, top_k: int, like: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.top_k = top_k
        self.weight: nn.Parameter | None = None
        self._older = 0  # experts that the router being learned finds here
        self._sizes: list[int] = []
        self.register_buffer("rows", like.new_empty(0, hidden_size), persistent=False)
        self._index()

    def router(self, task: int, *, older: bool = False) -> Tensor:
        """A task's router [E, d]; of the one being learned its rows for `older` experts alone."""
        if task == len(self._sizes):
            if self.weight is None:
                return self.rows[:0]
            return self.weight[: self._older] if older else self.weight
        start = sum(self._sizes[:task])
        return self.rows[start : start + self._sizes[task]]

    def learn(self, weight_ed: Tensor, older: int) -> None:
        """Take the router of the task being learned as a parameter; `older` experts exist."""
        self._older = older
        self.weight = nn.Parameter(weight_ed.to(self.rows, copy=True))

    def freeze(self, weights: Sequence[Tensor | None]) -> None:
        """Append the routers of finished tasks; None for a task without a router here."""
        present = [w.to(self.rows) for w in weights if w is not None]
        self.rows = torch.cat([self.rows, *present])
        self._sizes += [0 if w is None else len(w) for w in weights]
        self._index()

    def _index(self) -> None:
        starts = torch.tensor([0, *accumulate(self._sizes)][: len(self._sizes)], dtype=torch.long)
        counts = torch.tensor(self._sizes, dtype=torch.long)
        self.register_buffer("starts", starts.to(self.rows.device), persistent=False)
        self.register_buffer("counts", counts.to(self.rows.device), persistent=False)

    def forward(self, hidden_bsd: Tensor, routing: Routing) -> Gates | None:
        """Gates of a batch; None where no sample of it has a router at this layer."""
        tasks = set(routing.tasks) - {BASE}
        learning = self.router(len(self._sizes), older=self.layer in routing.without)
        sizes = (*self._sizes, len(learning))
        count = max((sizes[t] for t in tasks), default=0)
        if count == 0:
            return None
        if len(tasks) == 1:
            task = tasks.pop()
            router = learning if task == len(self._sizes) else self.router(task)
            logits_bse = F.linear(hidden_bsd, router)
            routed_b = routing.ids != BASE if BASE in routing.tasks else None
        else:
            logits_bse, routed_b = self._mixed_logits(hidden_bsd, routing, count, learning)
        probs_ne = logits_bse.float().softmax(-1).flatten(0, 1)
        gates = choose_experts(probs_ne, self.top_k)
        routed_n = None
        if routed_b is not None:
            routed_n = routed_b.repeat_interleave(hidden_bsd.shape[1])
            gates = Gates(gates.weights * routed_n.unsqueeze(1), gates.experts, count)
        if routing.record is not None:
            routing.record.append(self._usage(probs_ne, gates, routing, routed_n))
        return gates

    def _mixed_logits(
        self, hidden_bsd: Tensor, routing: Routing, count: int, learning_ed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, S, E] of a batch of several tasks, and which samples have a router here."""
        if self.layer not in routing.gathered:
            routing.gathered[self.layer] = self._gather(routing.ids, count)
        rows_bed, counts_b = routing.gathered[self.layer]
        logits_bse = torch.bmm(hidden_bsd, rows_bed.transpose(1, 2))
        if len(self._sizes) in routing.tasks and len(learning_ed):
            learning_b = routing.ids == len(self._sizes)
            learned_bse = F.linear(hidden_bsd, learning_ed)
            learned_bse = F.pad(learned_bse, (0, count - len(learning_ed)))
            logits_bse = torch.where(learning_b[:, None, None], learned_bse, logits_bse)
            counts_b = counts_b.where(~learning_b, len(learning_ed))
        missing_be = torch.arange(count, device=counts_b.device) >= counts_b[:, None]
        # Finite, so that a sample without a router yields numbers; its gates become 0 in the end.
        lowest = torch.finfo(logits_bse.dtype).min
        return logits_bse.masked_fill(missing_be[:, None], lowest), counts_b > 0

    def _gather(self, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The samples' frozen routers [B, E, d], and how many experts each chooses among [B]."""
        frozen_b = (ids >= 0) & (ids < len(self._sizes))
        if not self._sizes or not len(self.rows):
            rows = self.rows.new_zeros(len(ids), count, self.rows.shape[1])
            return rows, torch.zeros_like(ids)
        safe_b = ids.where(frozen_b, 0)
        index_be = self.starts[safe_b, None] + torch.arange(count, device=ids.device)
        rows_bed = self.rows[index_be.clamp_max(len(self.rows) - 1)]
        return rows_bed, self.counts[safe_b] * frozen_b

    def _usage(
        self, probs_ne: Tensor, gates: Gates, routing: Routing, routed_n: Tensor | None
    ) -> Usage:
        counts_n = torch.ones_like(probs_ne[:, 0])
        if routing.tokens is not None:
            counts_n = counts_n * routing.tokens.flatten()
        if routed_n is not None:
            counts_n = counts_n * routed_n
        largest_ne = F.one_hot(probs_ne.argmax(-1), gates.total)
        gates_ne = torch.zeros_like(probs_ne).scatter(1, gates.experts, gates.weights)
        balance = balance_loss(probs_ne, gates.experts, counts_n)
        with torch.no_grad():
            return Usage(self.layer, counts_n @ largest_ne.float(), counts_n @ gates_ne, balance)


def choose_experts(probs_ne: Tensor, top_k: int) -> Gates:
    """Gates of each token: the top `k = min(top_k, E)` probabilities, renormalised.

    With one expert a token the gate is the probability itself: renormalised it would be 1, and
    the router would get no gradient.
    """
    count = probs_ne.shape[-1]
    k = min(top_k, count)
    if k == count:
        experts = torch.arange(count, device=probs_ne.device).expand_as(probs_ne)
        return Gates(probs_ne, experts, count)
    weights, experts = probs_ne.topk(k, dim=-1)
    if k > 1:
        weights = weights / weights.sum(-1, keepdim=True)
    return Gates(weights, experts, count)


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
