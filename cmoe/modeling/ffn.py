"""The FFN of one decoder layer with its experts and routers: where the base is grown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmoe.modeling.base import Site
from cmoe.modeling.experts import ExpertStack, LayerCall, widths_of, wrapped
from cmoe.modeling.growth import (
    ROUTER_STD,
    Context,
    Growth,
    exported,
    freeze_pairs,
    learn_pairs,
    learned_pairs,
    require_pair,
    require_shape,
)
from cmoe.modeling.kernels import choice
from cmoe.modeling.kernels.functions import expand_swiglu, shrink
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import Routing, TaskRouters
from cmoe.modeling.settings import GateForm, Kernels


class GrowingFFN(nn.Module):
    """One decoder layer's FFN, wrapped in place; its linear maps gain stacked experts.

    Args:
        site: Where the layer keeps its FFN.
        layer: The layer's index; names its tensors in a primitive.
        top_k: Experts per token.
        gates: Their form.
        context: The current pass, shared by all layers.

    Attributes:
        added: How many of the frozen experts each learned task has added.
        kernels: What computes them, as of `ModelConfig`; `auto` by itself.
    """

    def __init__(
        self, site: Site, layer: int, top_k: int, gates: GateForm, context: Context
    ) -> None:
        super().__init__()
        self.layer = layer
        self.ffn = site.module
        self.kernels: Kernels = "auto"
        self._swiglu = choice.is_swiglu(self.ffn)
        self._context = context
        self._call = LayerCall()
        self.maps = wrapped(site, self._call)
        like = self.maps[site.maps[0]].frozen_A
        self.routers = TaskRouters(layer, like.shape[1], top_k, gates, like)
        self.widths = widths_of(self.maps)
        self.frozen = ExpertStack((), (), 0, self.widths, like.device)
        self.learning: ExpertStack | None = None
        self._both: ExpertStack | None = None  # where there are such, too
        self.added: tuple[int, ...] = ()
        setattr(site.layer, site.name, self)

    def forward(self, hidden_bsd: Tensor) -> Tensor:
        routing = self._context.routing
        if routing is not None and self._has_kernels(hidden_bsd, routing):
            return self._by_kernels(hidden_bsd, routing)
        gates = None if routing is None else self.routers(hidden_bsd, routing)
        if gates is None:
            return self.ffn(hidden_bsd)  # type: ignore[no-any-return]
        call, dtype = self._call, hidden_bsd.dtype
        call.frozen = self.frozen.dispatch(gates, dtype)
        call.learning = None if self.learning is None else self.learning.dispatch(gates, dtype)
        try:
            # A view of its own for the order of sums, as in `ExpertLinear`.
            return self.ffn(hidden_bsd.view_as(hidden_bsd))  # type: ignore[no-any-return]
        finally:
            call.frozen = call.learning = None

    def use_kernels(self, kernels: Kernels) -> None:
        """Choose what computes the experts; errors as of `GrownBase.use_kernels`."""
        if kernels == "triton":
            choice.require_swiglu(self.layer, self.ffn)
        self.kernels = kernels

    def _has_kernels(self, hidden_bsd: Tensor, routing: Routing) -> bool:
        """Whether kernels compute this pass.

        Not where a sample has no experts here: its numbers are the base's own, bit for bit.
        """
        return (
            self._swiglu
            and choice.on(hidden_bsd.device, self.kernels)
            and hidden_bsd.dtype == self.routers.rows.dtype
            and hidden_bsd.dtype in choice.DTYPES
            and self.routers.route_all(routing)
            and not choice.sharded(self)
        )

    def _by_kernels(self, hidden_bsd: Tensor, routing: Routing) -> Tensor:
        """What `self.ffn` computes with the experts, without reading gate and up a second time."""
        gates_ne = self.routers.dense(hidden_bsd, routing)
        gate, up, down = (self.maps[name] for name in choice.SWIGLU)
        stack = self.frozen if self._both is None else self._both
        rows = stack.first(gates_ne.shape[1], len(gate.frozen_A))
        count, u = len(rows.experts), hidden_bsd.flatten(0, 1)
        (A_gate, B_gate), (A_up, B_up), (A_down, B_down) = (
            each.first(count) for each in (gate, up, down)
        )
        h_gate, h_up = shrink(u, (A_gate, A_up), gates_ne, rows)
        inner = expand_swiglu(
            gate.linear(u), up.linear(u), h_gate, h_up, B_gate, B_up, rows.learned
        )
        (h_down,) = shrink(inner, (A_down,), gates_ne, rows)
        out: Tensor = down.linear(inner)
        return out.addmm_(h_down, B_down).view_as(hidden_bsd)

    def learn(self, growth: Growth) -> None:
        """Gain a task's experts, and a router to be trained."""
        count = growth.experts.get(self.layer, 0)
        total = len(self.frozen) + count
        if total == 0:
            return
        if count:
            learn_pairs(self.maps, self.router_key, count, growth.rank, growth)
            start, device = len(self.frozen), self.frozen.scale_e.device
            ranks, scales = (growth.rank,) * count, (growth.scale,) * count
            self.learning = ExpertStack(ranks, scales, start, self.widths, device)
            ranks, scales = self.frozen.ranks + ranks, self.frozen.scales + scales
            self._both = ExpertStack(ranks, scales, 0, self.widths, device)
        router = torch.randn(total, self.hidden_size, generator=growth.generator) * ROUTER_STD
        self.routers.learn(
            growth.start(self.router_key, router),
            len(self.frozen),
            growth.builds_on,
            compete=growth.compete,
        )

    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The experts and the router being learned, on the CPU, named as in a primitive."""
        experts: dict[str, Tensor] = {}
        if self.learning is not None:
            experts = learned_pairs(self.maps, self.router_key, self.learning.ranks[0])
        router = self.routers.weight
        return experts, {} if router is None else {self.router_key: exported(router)}

    def expert(self, index: int) -> dict[str, Tensor]:
        """One frozen expert, named as in a primitive: `A [1, r, in]`, `B [1, out, r]`."""
        rows = self.frozen.rows(index)
        tensors: dict[str, Tensor] = {}
        for name, linear in self.maps.items():
            A, B = linear.expert(rows)
            tensors |= {f"{self.expert_key(name)}.A": A, f"{self.expert_key(name)}.B": B}
        return tensors

    @torch.no_grad()
    def similarity(self) -> Tensor:
        """Cosines [E, E] between what the frozen experts do: their `BA` of all maps together."""
        owner = nn.functional.one_hot(self.frozen.row_expert, len(self.frozen)).double()
        inner = owner.new_zeros(len(self.frozen), len(self.frozen))
        for linear in self.maps.values():
            A, B = linear.frozen_A.double(), linear.frozen_B.double()
            # <B_e A_e, B_f A_f> is the sum over both experts' rows of (B B') x (A A').
            inner += owner.T @ ((B @ B.T) * (A @ A.T)) @ owner
        norm = inner.diagonal().sqrt().clamp_min(1e-30)
        return inner / norm / norm[:, None]

    def freeze(self, primitives: Sequence[Primitive], builds_on: Sequence[int]) -> None:
        """Append the primitives' experts and routers of this layer to the frozen ones."""
        first = f"{self.expert_key(next(iter(self.maps)))}.A"
        if adding := freeze_pairs(self.maps, self.router_key, primitives):
            new = [(p.rank, p.lora_alpha / p.rank) for p in adding for _ in p.experts[first]]
            ranks, scales = zip(*new, strict=True)
            ranks, scales = self.frozen.ranks + ranks, self.frozen.scales + scales
            self.frozen = ExpertStack(ranks, scales, 0, self.widths, self.frozen.scale_e.device)
        self.added += tuple(self._experts_of(primitive) for primitive in primitives)
        self.routers.freeze([p.routers.get(self.router_key) for p in primitives], builds_on)

    def check(self, primitives: Sequence[Primitive]) -> None:
        """ValueError where a tensor is missing or has another shape; it names the tensor."""
        total = len(self.frozen)
        for primitive in primitives:
            total += self._experts_of(primitive)
            router = primitive.routers.get(self.router_key)
            needed = (total, self.hidden_size) if total else None
            require_shape(primitive, self.router_key, router, needed)

    def _experts_of(self, primitive: Primitive) -> int:
        """How many experts a primitive has here."""
        count = 0
        for name, linear in self.maps.items():
            key = self.expert_key(name)
            A = primitive.experts.get(f"{key}.A")
            n = 0 if A is None else len(A)
            if name != next(iter(self.maps)) and n != count:
                raise ValueError(f"task {primitive.task!r}: {key}.A has {n} experts, not {count}")
            count = n
            require_pair(primitive, key, linear, n, primitive.rank)
        return count

    @property
    def hidden_size(self) -> int:
        return self.routers.rows.shape[1]

    def expert_key(self, name: str) -> str:
        return f"{self.router_key}.{name}"

    @property
    def router_key(self) -> str:
        return f"layers.{self.layer}"

    def discard(self) -> None:
        """Forget what is being learned."""
        self.learning = self._both = self.routers.weight = None
        for linear in self.maps.values():
            linear.discard()
