"""The attention of one decoder layer with the tasks' adapters, which no router chooses among.

A sample's own task decides alone: for all of its tokens the task's adapter works, and those of the
tasks that it builds on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from cmoe.modeling.base import Site
from cmoe.modeling.experts import Concatenated, LayerCall, widths_of, wrapped
from cmoe.modeling.growth import (
    Context,
    Growth,
    freeze_pairs,
    has_pairs,
    learn_pairs,
    learned_pairs,
    require_pair,
)
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE, Routing


class AdaptedAttention(nn.Module):
    """One decoder layer's attention, wrapped in place; its linear maps gain an adapter per task.

    Args:
        site: Where the layer keeps its attention.
        layer: The layer's index; names its tensors in a primitive.
        rank: Of every adapter.
        context: The current pass, shared by all layers.
    """

    def __init__(self, site: Site, layer: int, rank: int, context: Context) -> None:
        super().__init__()
        self.layer, self.rank = layer, rank
        self.attention = site.module
        self._context = context
        self._call = LayerCall()
        self.maps = wrapped(site, self._call)
        self.widths = widths_of(self.maps)
        self._scales: list[float] = []  # of the frozen adapters
        self._tasks: list[tuple[int, ...]] = []  # by task those of them that work
        self._growth: Growth | None = None  # where an adapter is being learned
        self._below: tuple[int, ...] = ()  # that work beside the one being learned
        self._chosen: dict[int, tuple[Tensor, Tensor]] = {}  # by task, as `_choose` gives it
        setattr(site.layer, site.name, self)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._chosen.clear()  # they are of the device that is left
        moved: Self = super()._apply(fn, recurse)
        return moved

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        routing, call = self._context.routing, self._call
        if routing is None or set(routing.tasks) == {BASE}:
            return self.attention(*args, **kwargs)
        hidden_bsd = args[0] if args else kwargs["hidden_states"]
        call.frozen, call.learning = self._dispatch(routing, hidden_bsd)
        try:
            return self.attention(*args, **kwargs)
        finally:
            call.frozen = call.learning = None

    def adapters(self, task: int) -> tuple[int, ...]:
        """The frozen adapters that work for a task, in ascending order."""
        if task < len(self._tasks):
            return () if task == BASE else self._tasks[task]
        return self._below

    def _dispatch(
        self, routing: Routing, hidden_bsd: Tensor
    ) -> tuple[Concatenated | None, Concatenated | None]:
        """How a batch runs through the frozen adapters, and through the one being learned."""
        tasks = routing.tasks
        alone = len(set(tasks)) == 1
        length, dtype = hidden_bsd.shape[1], hidden_bsd.dtype
        if alone and tasks[0] not in self._chosen:
            self._chosen[tasks[0]] = self._choose(tasks[:1])
        if self.layer not in routing.adapters:
            routing.adapters[self.layer] = self._chosen[tasks[0]] if alone else self._choose(tasks)
        rows, gates_br = routing.adapters[self.layer]
        frozen = learning = None
        if len(rows):
            gates_nr = gates_br if alone else gates_br.repeat_interleave(length, 0)
            frozen = Concatenated(gates_nr.to(dtype), rows)
        learned = len(self._tasks)
        if self._growth is not None and learned in tasks and routing.kept.get(self.layer) != 0:
            gates_n1 = torch.full((1, 1), self._growth.scale, device=hidden_bsd.device)
            if not alone:
                mine_b = routing.ids == learned
                gates_n1 = gates_n1 * mine_b.repeat_interleave(length)[:, None]
            learning = Concatenated(gates_n1.expand(-1, self.rank).to(dtype))
        return frozen, learning

    def _choose(self, tasks: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows [R] of all adapters that work for any of the samples, and their gates [B, R]."""
        by_sample = [self.adapters(task) for task in tasks]
        adapters = sorted({a for each in by_sample for a in each})
        device = next(iter(self.maps.values())).frozen_A.device
        rows = [row for a in adapters for row in range(a * self.rank, (a + 1) * self.rank)]
        gates = [
            [self._scales[a] if a in each else 0.0 for a in adapters for _ in range(self.rank)]
            for each in by_sample
        ]
        return (
            torch.tensor(rows, dtype=torch.long, device=device),
            torch.tensor(gates, device=device),
        )

    def learn(self, growth: Growth) -> None:
        """Gain the adapter of a task that grows in this layer."""
        self._chosen.clear()
        self._below = self.adapters(growth.builds_on)
        if not growth.experts.get(self.layer, 0):
            return
        self._growth = growth
        learn_pairs(self.maps, self.prefix, 1, self.rank, growth)

    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The adapter being learned, on the CPU, named as in a primitive; it has no router."""
        if self._growth is None:
            return {}, {}
        return learned_pairs(self.maps, self.prefix, self.rank), {}

    def check(self, primitives: Sequence[Primitive]) -> None:
        """ValueError where a tensor is missing or has another shape; it names the tensor."""
        for primitive in primitives:
            present = has_pairs(self.maps, self.prefix, primitive)
            for name, linear in self.maps.items():
                key = f"{self.prefix}.{name}"
                require_pair(primitive, key, linear, int(present), self.rank)

    def freeze(self, primitives: Sequence[Primitive], builds_on: Sequence[int]) -> None:
        """Append finished tasks' adapters of this layer."""
        self._chosen.clear()
        freeze_pairs(self.maps, self.prefix, primitives)
        for primitive, foundation in zip(primitives, builds_on, strict=True):
            present = has_pairs(self.maps, self.prefix, primitive)
            own = (len(self._scales),) if present else ()
            self._tasks.append((*self.adapters(foundation), *own))
            self._scales += [primitive.lora_alpha / primitive.rank] * len(own)

    def discard(self) -> None:
        """Forget what is being learned."""
        self._growth, self._below = None, ()
        self._chosen.clear()
        for linear in self.maps.values():
            linear.discard()

    @property
    def prefix(self) -> str:
        """Of the maps' names in a primitive."""
        return f"layers.{self.layer}.attention"

    def owns(self, name: str) -> bool:
        """Whether a primitive's tensor of this name belongs here."""
        return name.startswith(f"{self.prefix}.")
