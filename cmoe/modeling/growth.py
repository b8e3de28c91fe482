"""What the growing parts of all layers share: the current pass, and what a task adds to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cmoe.modeling.experts import ExpertLinear, fresh_pair
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE, Routing

ROUTER_STD = 0.02


class Context:
    """What all layers see of the current forward pass; without routing the base is untouched."""

    routing: Routing | None = None

    @contextmanager
    def using(self, routing: Routing | None) -> Iterator[None]:
        before, self.routing = self.routing, routing
        try:
            yield
        finally:
            self.routing = before


@dataclass(frozen=True)
class Growth:
    """What a task that begins adds.

    Attributes:
        experts: Layer -> number of new experts.
        rank: Theirs.
        scale: Theirs, and that of the adapters beside them.
        generator: Of fresh weights.
        init: Weights to start from instead, named as in a `Primitive`.
        builds_on: Index of the task whose experts stay at work, or `BASE`.
        compete: Whether new experts have to win their tokens, as of `TaskRouters.learn`.
    """

    experts: Mapping[int, int]
    rank: int
    scale: float
    generator: torch.Generator
    init: Mapping[str, Tensor] = field(default_factory=dict)
    builds_on: int = BASE
    compete: bool = False

    def start(self, name: str, fresh: Tensor) -> Tensor:
        """What a tensor of the task starts from.

        Raises:
            ValueError: `init` has it in another shape.
        """
        start = self.init.get(name, fresh)
        if start.shape != fresh.shape:
            found, needed = tuple(start.shape), tuple(fresh.shape)
            raise ValueError(f"init: {name} has shape {found}, this task needs {needed}")
        return start


class GrowingPart(Protocol):
    """A part of a decoder layer that tasks add to."""

    def learn(self, growth: Growth) -> None:
        """Gain what is to be trained for a task; ValueError where its `init` doesn't fit."""
        ...

    def learned(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What is being learned, on the CPU: experts and routers, named as in a primitive."""
        ...

    def check(self, primitives: Sequence[Primitive]) -> None:
        """ValueError where some don't fit behind what is there; it names the tensor."""
        ...

    def freeze(self, primitives: Sequence[Primitive], builds_on: Sequence[int]) -> None:
        """Append finished tasks, and the index of the task that each builds on."""
        ...

    def discard(self) -> None:
        """Forget what is being learned."""
        ...


def learn_pairs(
    maps: Mapping[str, ExpertLinear], prefix: str, count: int, rank: int, growth: Growth
) -> None:
    """Give the maps of a part `count` pairs of their own, to be trained.

    Args:
        maps: By name.
        prefix: Of the maps' names in a primitive.
        count: How many.
        rank: Theirs.
        growth: What else is to be known.
    """
    for name, linear in maps.items():
        A, B = fresh_pair(count, rank, linear.linear, growth.generator)
        key = f"{prefix}.{name}"
        linear.learn(growth.start(f"{key}.A", A), growth.start(f"{key}.B", B))


def learned_pairs(maps: Mapping[str, ExpertLinear], prefix: str, rank: int) -> dict[str, Tensor]:
    """The pairs being learned, on the CPU, named as in a primitive."""
    tensors: dict[str, Tensor] = {}
    for name, linear in maps.items():
        A, B = linear.learned(rank)
        key = f"{prefix}.{name}"
        tensors |= {f"{key}.A": exported(A), f"{key}.B": exported(B)}
    return tensors


def freeze_pairs(
    maps: Mapping[str, ExpertLinear], prefix: str, primitives: Sequence[Primitive]
) -> list[Primitive]:
    """Append the pairs of the primitives that have any here; those primitives."""
    adding = [p for p in primitives if has_pairs(maps, prefix, p)]
    for name, linear in maps.items() if adding else ():
        key = f"{prefix}.{name}"
        linear.freeze(
            [p.experts[f"{key}.A"] for p in adding], [p.experts[f"{key}.B"] for p in adding]
        )
    return adding


def has_pairs(maps: Mapping[str, ExpertLinear], prefix: str, primitive: Primitive) -> bool:
    """Whether a primitive has any of these maps."""
    return f"{prefix}.{next(iter(maps))}.A" in primitive.experts


def require_pair(
    primitive: Primitive, key: str, linear: ExpertLinear, count: int, rank: int
) -> None:
    """Refuse a map's pair unless it is `A [count, r, in]` and `B [count, out, r]`; no pair if 0.

    Raises:
        ValueError: Names the tensor.
    """
    plain = linear.linear
    pair = (count, rank, plain.in_features), (count, plain.out_features, rank)
    for suffix, shape in zip("AB", pair, strict=True):
        tensor = primitive.experts.get(f"{key}.{suffix}")
        require_shape(primitive, f"{key}.{suffix}", tensor, shape if count else None)


def exported(tensor: Tensor) -> Tensor:
    """A copy on the CPU."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def require_shape(
    primitive: Primitive, name: str, tensor: Tensor | None, shape: tuple[int, ...] | None
) -> None:
    """Refuse a primitive's tensor of another shape, or where there should be none.

    Raises:
        ValueError: Names it.
    """
    found = None if tensor is None else tuple(tensor.shape)
    if found != shape:
        raise ValueError(
            f"task {primitive.task!r}: {name} has shape {found or 'none'}, "
            f"this model needs {shape or 'none'}"
        )
