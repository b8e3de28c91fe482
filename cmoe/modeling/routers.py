"""The tasks' routers of one FFN: gates, balance loss, and a record of who used which expert.

Routing is hierarchical (method, "Experts and routers"): the locator chooses a sample's task, and
that task's router chooses among the experts that existed when it was trained, token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, Self

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


@dataclass
class Routing:
    """Which task's routers each sample of a forward pass uses.

    Attributes:
        tasks: Per sample an index into the tasks or `BASE`. On the host: shapes depend on it.
        ids: The same [B], on the device.
        tokens: [B, S] bool, tokens that count in the record; None counts all.
        record: Receives every layer's `Usage`; None records nothing.
        kept: By layer how many experts of the task being learned work, where not all of them do;
            that task's router chooses among these and the older ones.
        mixed: What a mixed batch needs of each layer, kept for all steps of a generation.
        adapters: By layer the rows and gates of the attention's adapters, kept likewise.
    """

    tasks: tuple[int, ...]
    ids: Tensor
    tokens: Tensor | None = None
    record: list[Usage] | None = None
    kept: Mapping[int, int] = field(default_factory=dict)
    mixed: dict[int, Mixed] = field(default_factory=dict)
    adapters: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

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

    def __init__(
        self, layer: int, hidden_size: int, top_k: int, form: GateForm, like: Tensor
    ) -> None:
        super().__init__()
        self.layer = layer
        self.top_k = top_k
        self.form = form
        self.weight: nn.Parameter | None = None
        self._older = 0  # experts that the router being learned finds here
        self._learning_form = form
        self._builds_on: tuple[int, ...] = ()  # always at work beside those being learned
        self._sizes: list[int] = []
        self._always: list[tuple[int, ...]] = []
        self._indices: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.register_buffer("rows", like.new_empty(0, hidden_size), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._indices.clear()  # they are of the device that is left
        moved: Self = super()._apply(fn, recurse)
        return moved

    def router(self, task: int) -> Tensor:
        """A task's router [E, d]; of one that has none here, no rows."""
        if task == len(self._sizes):
            return self.rows[:0] if self.weight is None else self.weight
        start = sum(self._sizes[:task])
        return self.rows[start : start + self._sizes[task]]

    def learn(self, weight_ed: Tensor, older: int, builds_on: int, *, compete: bool) -> None:
        """Take the router of the task being learned as a parameter.

        Args:
            weight_ed: What it starts from.
            older: Experts that exist; the others are the task's own.
            builds_on: Task whose experts stay at work, or `BASE`.
            compete: Whether the own ones have to win their tokens, by the paper's gates, whatever
                form the others have. Probes do.
        """
        self._older = older
        self._learning_form = "renormalized" if compete else self.form
        self._builds_on = () if builds_on == BASE else self._always[builds_on]
        self._indices.clear()
        self.weight = nn.Parameter(weight_ed.to(self.rows, copy=True))

    def freeze(self, weights: Sequence[Tensor | None], builds_on: Sequence[int]) -> None:
        """Append the routers of finished tasks; None for a task without a router here.

        Args:
            weights: In the order of learning.
            builds_on: Index of the task that each builds on, or `BASE`.
        """
        present = [w.to(self.rows) for w in weights if w is not None]
        self.rows = torch.cat([self.rows, *present])
        for weight, foundation in zip(weights, builds_on, strict=True):
            size = 0 if weight is None else len(weight)
            # A task knows all experts of its time: what it knows beyond those before is its own.
            own = range(max(self._sizes, default=0), size)
            below = () if foundation == BASE else self._always[foundation]
            self._always.append((*below, *own) if self.form == "residual" else ())
            self._sizes.append(size)
        self._indices.clear()

    def always_on(self, task: int, kept: int | None = None) -> tuple[int, ...]:
        """The experts that work for all tokens of a task, in ascending order.

        Args:
            task: Its index.
            kept: Of the one being learned how many of its own experts work, if not all.
        """
        if task < len(self._always):
            return () if task == BASE else self._always[task]
        if self.weight is None or self._learning_form != "residual":
            return ()
        return (*self._builds_on, *range(self._older, self._size(task, kept)))

    def fixed(self, task: int) -> tuple[int, ...] | None:
        """The experts of a learned task, where they work for all tokens and no others do.

        Each has gate 1 then. None where the task's router weighs experts token by token.
        """
        count, always = self._size(task, None), self.always_on(task)
        if slots(count, len(always), self.top_k) == len(always):
            return always
        if count > 1:
            return None
        # The probability of a single expert is 1: that's its gate, or 1 more than it gets if added.
        return () if self.form == "residual" else (0,)

    def _size(self, task: int, kept: int | None) -> int:
        """Experts that a task's router chooses among; arguments as of `always_on`."""
        if task < len(self._sizes):
            return 0 if task == BASE else self._sizes[task]
        whole = 0 if self.weight is None else len(self.weight)
        return whole if kept is None else min(whole, self._older + kept)

    def _form(self, task: int) -> GateForm:
        return self.form if task < len(self._sizes) else self._learning_form

    def forward(self, hidden_bsd: Tensor, routing: Routing) -> Gates | None:
        """Gates of a batch; None where no sample of it has a router at this layer."""
        tasks, kept = set(routing.tasks) - {BASE}, routing.kept.get(self.layer)
        count = max((self._size(t, kept) for t in tasks), default=0)
        if count == 0:
            return None
        forms = {self._form(t) for t in tasks}
        routed_b = routed_n = None
        if len(tasks) == 1:
            (task,) = tasks
            logits_bse = F.linear(hidden_bsd, self.router(task)[:count])
            probs_ne = logits_bse.float().softmax(-1).flatten(0, 1)
            if forms == {"residual"}:
                gates = add_to(probs_ne, *self._split(task, count), self.top_k)
            else:
                gates = choose_experts(probs_ne, self.top_k, renormalize=forms != {"softmax"})
            if BASE in routing.tasks:
                routed_b = routing.ids != BASE
        else:
            probs_ne, gates, counts_b = self._mixed(hidden_bsd, routing, count, forms)
            routed_b = counts_b > 0
        if routed_b is not None:
            routed_n = routed_b.repeat_interleave(hidden_bsd.shape[1])
            gates = Gates(gates.weights * routed_n.unsqueeze(1), gates.experts, count)
        if routing.record is not None:
            usage = self._usage(probs_ne, gates, routing, routed_n)
            if "residual" in forms:  # there is nothing to balance: none need be used
                usage = usage._replace(balance=torch.zeros_like(usage.balance))
            routing.record.append(usage)
        return gates

    def _split(self, task: int, count: int) -> tuple[Tensor, Tensor]:
        """Indices of the experts that always work for a task that knows `count`, and the others."""
        if (task, count) not in self._indices:
            always = self.always_on(task, count - self._older)
            others = sorted(set(range(count)) - set(always))
            self._indices[task, count] = (
                torch.tensor(always, dtype=torch.long, device=self.rows.device),
                torch.tensor(others, dtype=torch.long, device=self.rows.device),
            )
        return self._indices[task, count]

    def _mixed(
        self, hidden_bsd: Tensor, routing: Routing, count: int, forms: set[GateForm]
    ) -> tuple[Tensor, Gates, Tensor]:
        """Probabilities, gates, and each sample's experts here [B], of a batch of several tasks."""
        learned, kept = len(self._sizes), routing.kept.get(self.layer)
        if self.layer not in routing.mixed:
            routing.mixed[self.layer] = self._gather(routing.tasks, count, kept)
        mixed = routing.mixed[self.layer]
        logits_bse = torch.bmm(hidden_bsd, mixed.rows.transpose(1, 2))
        if self.weight is not None and learned in routing.tasks:
            mine_ed = self.weight[: self._size(learned, kept)]
            mine_bse = F.pad(F.linear(hidden_bsd, mine_ed), (0, count - len(mine_ed)))
            logits_bse = mine_bse.where((routing.ids == learned)[:, None, None], logits_bse)
        missing_be = torch.arange(count, device=mixed.counts.device) >= mixed.counts[:, None]
        # Finite, so that a sample without a router yields numbers; its gates become 0 in the end.
        lowest = torch.finfo(logits_bse.dtype).min
        logits_bse = logits_bse.masked_fill(missing_be[:, None], lowest)
        probs_ne = logits_bse.float().softmax(-1).flatten(0, 1)
        if "residual" in forms:
            gates = choose_mixed(probs_ne, mixed, self.top_k)
        else:
            gates = choose_experts(probs_ne, self.top_k, renormalize=self.form != "softmax")
        return probs_ne, gates, mixed.counts

    def _gather(self, tasks: Sequence[int], count: int, kept: int | None) -> Mixed:
        """See `Mixed`; what it is made of is known on the host, and goes to the device at once."""
        starts = [*accumulate(self._sizes, initial=0)]
        last, table, most = max(len(self.rows) - 1, 0), [], 0
        for task in tasks:
            size, always = self._size(task, kept), self.always_on(task, kept)
            start = starts[task] if 0 <= task < len(self._sizes) else 0
            used = slots(size, len(always), self.top_k)
            most = max(most, used)
            table.append(
                [min(start + e, last) for e in range(count)]
                + [e in always for e in range(count)]
                + [size, used, self._form(task) == "residual"]
            )
        values = torch.tensor(table).to(self.rows.device)
        index_be, always_be, rest = values.split([count, count, 3], 1)
        rows = self.rows if len(self.rows) else self.rows.new_zeros(1, self.rows.shape[1])
        counts, used_b, added = rest.unbind(1)
        return Mixed(rows[index_be], counts, always_be.bool(), added.bool(), used_b, most)

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
