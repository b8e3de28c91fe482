"""The experts' maths at a stated capacity: shapes that no step, task or token changes.

What a CUDA graph captures and a compiler compiles once. It gives what `GrowingFFN` and
`AdaptedAttention` give, from the same primitives; and imports nothing of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE, TaskRouters
from cmoe.modeling.settings import GateForm, slots
from cmoe.serving.engines.vllm.settings import Capacity


class CapacityError(ValueError):
    """A store needs more room than an engine has."""

    def __init__(self, what: str, needed: int, have: int) -> None:
        super().__init__(
            f"the store needs room for {needed} {what.replace('_', ' ')}, and the engine has "
            f"{have}; raise engine.vllm.capacity.{what}"
        )


class Pairs(nn.Module):
    """The LoRA pairs of one linear map, or of several whose outputs lie one behind the other.

    Args:
        inputs: Width of the input, or of this process's share of it.
        outputs: Widths of the maps' outputs, or of this process's shares of them.
        rows: Capacity.
        like: A weight, for dtype and device.
    """

    A: Tensor
    B: Tensor

    def __init__(self, inputs: int, outputs: Sequence[int], rows: int, like: Tensor) -> None:
        super().__init__()
        self.outputs = tuple(outputs)
        # One product makes the inner rows of all maps.
        self.register_buffer("A", like.new_zeros(len(outputs) * rows, inputs), persistent=False)
        self.register_buffer("B", like.new_zeros(rows, sum(outputs)), persistent=False)

    def put(self, at: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put experts into the rows from `at` on: each map's `A [n, r, in]` and `B [n, out, r]`."""
        rows = len(self.B)
        ends = 0
        for number, (A, B) in enumerate(pairs):
            count = A.shape[0] * A.shape[1]
            first = number * rows + at
            self.A[first : first + count].copy_(A.flatten(0, 1))
            width = self.outputs[number]
            self.B[at : at + count, ends : ends + width].copy_(B.transpose(1, 2).flatten(0, 1))
            ends += width

    def inner(self, u_ni: Tensor) -> Tensor:
        """[n, maps, R]; of a share of the input, to be summed over the shares."""
        return F.linear(u_ni, self.A).view(len(u_ni), len(self.outputs), -1)

    def add_to(self, out_no: Tensor, inner_nmr: Tensor, gates_nr: Tensor) -> Tensor:
        """Add the pairs' share to the maps' outputs [n, sum of the outputs], in place."""
        gated_nmr = inner_nmr * gates_nr[:, None]
        outs, Bs = out_no.split(self.outputs, 1), self.B.split(self.outputs, 1)
        for number, (out, B_ro) in enumerate(zip(outs, Bs, strict=True)):
            out.addmm_(gated_nmr[:, number], B_ro)
        return out_no


class RoutedExperts(nn.Module):
    """Which experts of one layer's FFN work for each token, and how much.

    Args:
        layer: The decoder layer's index.
        width: Of the FFN's input.
        top_k: Experts per token.
        form: How gates are made.
        capacity: Of the engine.
        like: A weight of the layer, for dtype and device.

    Attributes:
        rows: Rows in use.
    """

    weights: Tensor
    known: Tensor
    always: Tensor
    count: Tensor
    added: Tensor
    scale: Tensor
    row_expert: Tensor

    def __init__(
        self,
        layer: int,
        width: int,
        top_k: int,
        form: GateForm,
        capacity: Capacity,
        like: Tensor,
    ) -> None:
        super().__init__()
        tasks, experts = capacity.tasks, capacity.experts
        self.layer, self.top_k, self.form, self.capacity = (
            layer,
            min(top_k, experts),
            form,
            capacity,
        )
        self.rows = self._experts = self._tasks = 0
        # Knows which experts a task's router chooses among, and which always work.
        self._routers = TaskRouters(layer, width, top_k, form, torch.empty(0, dtype=like.dtype))
        device = like.device

        def buffer(name: str, tensor: Tensor) -> None:
            self.register_buffer(name, tensor, persistent=False)

        buffer("weights", like.new_zeros(tasks, experts, width))
        buffer("known", torch.zeros(tasks, experts, dtype=torch.bool, device=device))
        buffer("always", torch.zeros(tasks, experts, dtype=torch.bool, device=device))
        buffer("count", torch.zeros(tasks, dtype=torch.long, device=device))
        buffer("added", torch.zeros(tasks, dtype=torch.long, device=device))
        buffer("scale", torch.zeros(experts, device=device))
        # Rows that no expert has yet look at a place behind the experts, whose gate is 0.
        unused = torch.full((capacity.rows,), experts, dtype=torch.long, device=device)
        buffer("row_expert", unused)

    def require_room(self, primitives: Sequence[Primitive], first: str) -> None:
        """Refuse primitives that have no room here.

        Args:
            primitives: Behind those that are there.
            first: Name of the FFN's first map.

        Raises:
            CapacityError: Names the capacity.
        """
        experts, rows = self._experts, self.rows
        for primitive in primitives:
            pair = primitive.experts.get(f"layers.{self.layer}.{first}.A")
            if pair is not None:
                experts, rows = experts + len(pair), rows + pair.shape[0] * pair.shape[1]
        for what, needed in (("experts", experts), ("rows", rows)):
            if needed > (have := getattr(self.capacity, what)):
                raise CapacityError(what, needed, have)

    def append(self, primitive: Primitive, foundation: int, count: int) -> int:
        """Take a primitive's router; its experts' rows begin at what this returns.

        Args:
            primitive: That has room here.
            foundation: Index of the task that it builds on, or `BASE`.
            count: Experts that it adds here.
        """
        task, at, rank = self._tasks, self.rows, primitive.rank
        self.row_expert[at : at + count * rank] = torch.arange(
            self._experts, self._experts + count, device=self.row_expert.device
        ).repeat_interleave(rank)
        self.scale[self._experts : self._experts + count] = primitive.lora_alpha / rank
        self.rows, self._experts, self._tasks = at + count * rank, self._experts + count, task + 1
        router = primitive.routers.get(f"layers.{self.layer}")
        self._routers.freeze([router], [foundation])
        if router is not None:
            known, always = len(router), self._routers.always_on(task)
            self.weights[task, :known].copy_(router)
            self.known[task, :known] = True
            self.always[task, list(always)] = True
            self.count[task] = known
            self.added[task] = slots(known, len(always), self.top_k) - len(always)
        return at

    def forward(self, x_nd: Tensor, tasks_n: Tensor) -> Tensor:
        """Gates [n, R] of tokens' rows.

        Args:
            x_nd: What the FFN reads.
            tasks_n: Each token's task, or `BASE`.
        """
        tasks, experts, width = self.weights.shape
        own_n = tasks_n.clamp_min(0)
        every_nte = F.linear(x_nd, self.weights.view(-1, width)).view(-1, tasks, experts)
        index_n1e = own_n[:, None, None].expand(-1, 1, experts)
        logits_ne = every_nte.gather(1, index_n1e).squeeze(1).float()
        known_ne, count_n1 = self.known[own_n], self.count[own_n][:, None]
        lowest = torch.finfo(torch.float32).min  # finite: tokens without a router yield numbers
        probs_ne = logits_ne.masked_fill(~known_ne, lowest).softmax(-1)
        places_k = torch.arange(self.top_k, device=x_nd.device)
        if self.form == "residual":
            always_ne = self.always[own_n]
            others_ne = probs_ne.masked_fill(always_ne | ~known_ne, -1.0)
            best = others_ne.topk(self.top_k, -1)
            used_nk = places_k < self.added[own_n][:, None]
            chosen_nk = (best.values - 1 / count_n1.clamp_min(1)) * used_nk
            gates_ne = torch.zeros_like(probs_ne).scatter(1, best.indices, chosen_nk)
            gates_ne = gates_ne.masked_fill(always_ne, 1.0)
        else:
            best = probs_ne.topk(self.top_k, -1)
            chosen_nk = best.values * (places_k < count_n1)
            if self.form == "renormalized" and self.top_k > 1:
                whole_n1 = chosen_nk.sum(-1, keepdim=True)
                chosen_nk = chosen_nk / whole_n1.clamp_min(torch.finfo(torch.float32).tiny)
            gates_ne = torch.zeros_like(probs_ne).scatter(1, best.indices, chosen_nk)
        routed_n1 = (tasks_n != BASE)[:, None] & (count_n1 > 0)
        gates_ne = (gates_ne * self.scale * routed_n1).to(x_nd.dtype)
        return F.pad(gates_ne, (0, 1)).index_select(1, self.row_expert)


class RoutedAdapters(nn.Module):
    """Which adapters of one layer's attention work for each token: its task alone decides.

    Args:
        layer: The decoder layer's index.
        rank: Of every adapter.
        capacity: Of the engine.
        like: A weight of the layer, for dtype and device.

    Attributes:
        rows: Rows in use.
    """

    gates: Tensor

    def __init__(self, layer: int, rank: int, capacity: Capacity, like: Tensor) -> None:
        super().__init__()
        self.layer, self.rank, self.capacity, self.rows = layer, rank, capacity, 0
        self._tasks: list[tuple[int, ...]] = []  # by task the first rows of those that work
        self._scales: dict[int, float] = {}
        # The last row is the base's.
        zeros = like.new_zeros(capacity.tasks + 1, capacity.adapter_rows)
        self.register_buffer("gates", zeros, persistent=False)

    def require_room(self, primitives: Sequence[Primitive], first: str) -> None:
        """As of `RoutedExperts`."""
        adding = sum(f"layers.{self.layer}.attention.{first}.A" in p.experts for p in primitives)
        needed = self.rows + adding * self.rank
        if needed > self.capacity.adapter_rows:
            raise CapacityError("adapter_rows", needed, self.capacity.adapter_rows)

    def append(self, primitive: Primitive, foundation: int, *, adds: bool) -> int:
        """Take a task; the rows of its adapter begin at what this returns.

        Args:
            primitive: That has room here.
            foundation: Index of the task that it builds on, or `BASE`.
            adds: Whether it has an adapter here.
        """
        at, task = self.rows, len(self._tasks)
        below = () if foundation == BASE else self._tasks[foundation]
        self._tasks.append((*below, at) if adds else below)
        if adds:
            self._scales[at] = primitive.lora_alpha / primitive.rank
            self.rows = at + self.rank
        for start in self._tasks[task]:
            self.gates[task, start : start + self.rank] = self._scales[start]
        return at

    def forward(self, tasks_n: Tensor) -> Tensor:
        """Gates [n, R] of tokens' rows; arguments as of `RoutedExperts`."""
        return self.gates.index_select(0, tasks_n.remainder(len(self.gates)))


def pairs_of(
    primitive: Primitive, prefix: str, maps: Sequence[str]
) -> list[tuple[Tensor, Tensor]] | None:
    """A primitive's pairs of some maps, in their order; None where it has none."""
    experts: Mapping[str, Tensor] = primitive.experts
    if f"{prefix}.{maps[0]}.A" not in experts:
        return None
    return [(experts[f"{prefix}.{name}.A"], experts[f"{prefix}.{name}.B"]) for name in maps]
