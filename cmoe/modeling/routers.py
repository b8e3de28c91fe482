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
from cmoe.modeling.gates import (
    Mixed,
    Split,
    add_to,
    balance_loss,
    choose_experts,
    choose_mixed,
)
from cmoe.modeling.kernels.functions import route
from cmoe.modeling.kernels.reference import Choice
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
        self._indices: dict[tuple[int, int], Split] = {}
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
                split = self._split(task, count)
                gates = add_to(probs_ne, split.always, split.others, self.top_k)
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
            routing.record.append(self._usage(probs_ne, gates, routing, routed_n, forms))
        return gates

    def route_all(self, routing: Routing) -> bool:
        """Whether every sample of a batch has a router at this layer."""
        kept = routing.kept.get(self.layer)
        return min((self._size(task, kept) for task in set(routing.tasks)), default=0) > 0

    def dense(self, hidden_bsd: Tensor, routing: Routing) -> Tensor:
        """Gates [n, E] by expert of a batch whose samples all have a router here, by a kernel.

        Its logits are in fp32. A batch of several tasks is routed as by `forward`.
        """
        task, kept = routing.tasks[0], routing.kept.get(self.layer)
        if len(set(routing.tasks)) > 1:
            gates = self(hidden_bsd, routing)
            assert gates is not None
            return gates.dense()  # type: ignore[no-any-return]
        count, form, always = self._size(task, kept), self._form(task), None
        used = likeliest = min(self.top_k, count)
        if form == "residual":
            always = self._split(task, count).is_always
            fixed = len(self.always_on(task, count - self._older))
            used = slots(count, fixed, self.top_k)
            likeliest = used - fixed
        choice = Choice(likeliest, form == "renormalized" and 1 < likeliest < count, always)
        routed = route(hidden_bsd.flatten(0, 1), self.router(task)[:count], choice)
        if routing.record is not None:
            experts = routed.chosen.byte().topk(used, dim=-1).indices
            gates = Gates(routed.gates.gather(1, experts), experts, count)
            routing.record.append(self._usage(routed.probs, gates, routing, None, {form}))
        return routed.gates

    def _split(self, task: int, count: int) -> Split:
        """How the experts of a task that knows `count` are split."""
        if (task, count) not in self._indices:
            always = self.always_on(task, count - self._older)
            others = sorted(set(range(count)) - set(always))
            self._indices[task, count] = Split(
                torch.tensor(always, dtype=torch.long, device=self.rows.device),
                torch.tensor(others, dtype=torch.long, device=self.rows.device),
                torch.tensor([e in always for e in range(count)], device=self.rows.device),
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
        self,
        probs_ne: Tensor,
        gates: Gates,
        routing: Routing,
        routed_n: Tensor | None,
        forms: set[GateForm],
    ) -> Usage:
        counts_n = torch.ones_like(probs_ne[:, 0])
        if routing.tokens is not None:
            counts_n = counts_n * routing.tokens.flatten()
        if routed_n is not None:
            counts_n = counts_n * routed_n
        largest_ne = F.one_hot(probs_ne.argmax(-1), gates.total)
        gates_ne = gates.dense()
        balance = balance_loss(probs_ne, gates.experts, counts_n)
        if "residual" in forms:  # there is nothing to balance: none need be used
            balance = torch.zeros_like(balance)
        with torch.no_grad():
            return Usage(self.layer, counts_n @ largest_ne.float(), counts_n @ gates_ne, balance)
