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
from cmoe.modeling.settings import GateForm, slots

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
        form: How gates are made of a router's probabilities.
    """

    rows: Tensor
    starts: Tensor
    counts: Tensor
    own: Tensor
    used: Tensor

    def __init__(
        self, layer: int, hidden_size: int, top_k: int, form: GateForm, like: Tensor
    ) -> None:
        super().__init__()
        self.layer = layer
        self.top_k = top_k
        self.form = form
        self.weight: nn.Parameter | None = None
        self._older = 0  # experts that the router being learned finds here
        self._always = False  # whether the experts beside them always work
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

    def learn(self, weight_ed: Tensor, older: int, *, always: bool) -> None:
        """Take the router of the task being learned as a parameter.

        Args:
            weight_ed: What it starts from.
            older: Experts that exist; the others are the task's own.
            always: Whether the own ones always work where the form of the gates says so. Probes
                don't: they are to win their tokens.
        """
        self._older, self._always = older, always and self.form == "residual"
        self.weight = nn.Parameter(weight_ed.to(self.rows, copy=True))

    def freeze(self, weights: Sequence[Tensor | None]) -> None:
        """Append the routers of finished tasks; None for a task without a router here."""
        present = [w.to(self.rows) for w in weights if w is not None]
        self.rows = torch.cat([self.rows, *present])
        self._sizes += [0 if w is None else len(w) for w in weights]
        self._index()

    def _index(self) -> None:
        # A task knows all experts of its time: what it knows beyond those before it is its own.
        before = accumulate(self._sizes, max, initial=0)
        own = (max(n - older, 0) for n, older in zip(self._sizes, before, strict=False))
        self._own = [n if self.form == "residual" else 0 for n in own]
        used = [slots(n, own, self.top_k) for n, own in zip(self._sizes, self._own, strict=True)]
        starts = [*accumulate(self._sizes, initial=0)][: len(self._sizes)]
        values = {"starts": starts, "counts": self._sizes, "own": self._own, "used": used}
        for name, value in values.items():
            tensor = torch.tensor(value, dtype=torch.long, device=self.rows.device)
            self.register_buffer(name, tensor, persistent=False)

    def always_on(self, task: int, *, older: bool = False) -> int:
        """How many of a task's experts work for all of its tokens: its own ones, or none."""
        if task < len(self._own):
            return self._own[task]
        own = 0 if self.weight is None else len(self.weight) - self._older
        return own if self._always and not older else 0

    def forward(self, hidden_bsd: Tensor, routing: Routing) -> Gates | None:
        """Gates of a batch; None where no sample of it has a router at this layer."""
        tasks = set(routing.tasks) - {BASE}
        older = self.layer in routing.without
        learning = self.router(len(self._sizes), older=older)
        sizes = (*self._sizes, len(learning))
        count = max((sizes[t] for t in tasks), default=0)
        if count == 0:
            return None
        own = {t: self.always_on(t, older=older) for t in tasks}
        routed_n = None
        if len(tasks) == 1:
            (task,) = tasks
            router = learning if task == len(self._sizes) else self.router(task)
            logits_bse = F.linear(hidden_bsd, router)
            routed_b = routing.ids != BASE if BASE in routing.tasks else None
        else:
            logits_bse, counts_b = self._mixed_logits(hidden_bsd, routing, count, learning)
            routed_b = counts_b > 0
        probs_ne = logits_bse.float().softmax(-1).flatten(0, 1)
        if not any(own.values()):
            gates = choose_experts(probs_ne, self.top_k, renormalize=self.form != "softmax")
        elif len(tasks) == 1:
            gates = add_to_own(probs_ne, own[task], self.top_k)
        else:
            used = {t: slots(sizes[t], own[t], self.top_k) for t in tasks}
            learned = len(self._sizes)
            own_b = self._of_samples(self.own, routing.ids, own.get(learned, 0))
            used_b = self._of_samples(self.used, routing.ids, used.get(learned, 0))
            counts_n, own_n, used_n = (
                value.repeat_interleave(hidden_bsd.shape[1]) for value in (counts_b, own_b, used_b)
            )
            gates = choose_mixed(probs_ne, counts_n, own_n, used_n, max(used.values()), self.top_k)
        if routed_b is not None:
            routed_n = routed_b.repeat_interleave(hidden_bsd.shape[1])
            gates = Gates(gates.weights * routed_n.unsqueeze(1), gates.experts, count)
        if routing.record is not None:
            usage = self._usage(probs_ne, gates, routing, routed_n)
            if any(own.values()):  # there is nothing to balance: older ones needn't be used
                usage = usage._replace(balance=torch.zeros_like(usage.balance))
            routing.record.append(usage)
        return gates

    def _of_samples(self, values_t: Tensor, ids: Tensor, learning: int) -> Tensor:
        """A figure of each sample's task [B]: of the learned ones, or of the one being learned."""
        frozen_b = (ids >= 0) & (ids < len(self._sizes))
        values_b = values_t[ids.where(frozen_b, 0)] * frozen_b
        return values_b.where(ids != len(self._sizes), learning)

    def _mixed_logits(
        self, hidden_bsd: Tensor, routing: Routing, count: int, learning_ed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, S, E] of a batch of several tasks, and each sample's experts here [B]."""
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
        return logits_bse.masked_fill(missing_be[:, None], lowest), counts_b

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


def add_to_own(probs_ne: Tensor, own: int, top_k: int) -> Gates:
    """Gates of tokens whose last `own` experts always work, with gate 1.

    The likeliest older ones are added with gate `p_e - 1/E`: nothing where the router prefers none,
    as at its start, and a gradient there too.
    """
    tokens, count = probs_ne.shape
    older = count - own
    weights, experts = probs_ne[:, :older].topk(slots(count, own, top_k) - own, dim=-1)
    always = torch.arange(older, count, device=probs_ne.device).expand(tokens, own)
    gates = torch.cat([weights - 1 / count, weights.new_ones(tokens, own)], 1)
    return Gates(gates, torch.cat([experts, always], 1), count)


def choose_mixed(
    probs_ne: Tensor, counts_n: Tensor, own_n: Tensor, used_n: Tensor, most: int, top_k: int
) -> Gates:
    """As `choose_experts` and `add_to_own`, for tokens of several tasks.

    Args:
        probs_ne: 0 for experts that a token's task doesn't know.
        counts_n: How many it knows.
        own_n: The last so many of them always work.
        used_n: How many it uses.
        most: The largest of those.
        top_k: Experts per token.
    """
    places = torch.arange(probs_ne.shape[1], device=probs_ne.device)
    own_ne = (places >= (counts_n - own_n)[:, None]) & (places < counts_n[:, None])
    experts = probs_ne.masked_fill(own_ne, 2.0).topk(most, dim=-1).indices
    probs_nk = probs_ne.gather(1, experts) * (places[:most] < used_n[:, None])
    whole_n1 = probs_nk.sum(1, keepdim=True) if top_k > 1 else torch.ones_like(probs_nk[:, :1])
    weights = probs_nk / whole_n1.clamp_min(torch.finfo(probs_nk.dtype).tiny)
    added = torch.where(probs_nk > 0, probs_nk - 1 / counts_n.clamp_min(1)[:, None], 0)
    added = added.masked_fill(own_ne.gather(1, experts), 1.0)
    return Gates(weights.where(own_n[:, None] == 0, added), experts, probs_ne.shape[1])


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
