"""What a task adds to a base where it is the same for every token: a LoRA of linear maps.

Such a task can leave cmoe: as an adapter of PEFT, or merged into the base's weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cmoe.common.errors import KnownError
from cmoe.modeling.attention import AdaptedAttention
from cmoe.modeling.base import find_attentions, find_ffns
from cmoe.modeling.ffn import GrowingFFN
from cmoe.modeling.grown import foundation
from cmoe.modeling.growth import Context, GrowingPart, has_pairs
from cmoe.modeling.primitive import Primitive


class NotFixedError(KnownError, ValueError):
    """What a task adds depends on the token, or isn't low-rank: no LoRA says the same."""


@dataclass(frozen=True)
class LowRank:
    """A fixed update of a linear map's weight: `alpha / r * B @ A`, with A [r, in], B [out, r]."""

    A: Tensor
    B: Tensor
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / len(self.A)


def joined(updates: Sequence[LowRank]) -> LowRank:
    """Updates of one map as one, whose rank is the sum of theirs; they have one scale."""
    A, B = torch.cat([each.A for each in updates]), torch.cat([each.B for each in updates], dim=1)
    return LowRank(A.contiguous(), B.contiguous(), sum(each.alpha for each in updates))


Updates = Mapping[str, LowRank]
"""Of a base, by the names of its modules."""


class Mixture:
    """The experts and adapters of a growing model's tasks, by the base's own names.

    Args:
        shape: The base, without weights; wrapped in place.
        primitives: All tasks of a log, or its first ones.
        settings: The log's.
    """

    def __init__(
        self, shape: nn.Module, primitives: Sequence[Primitive], settings: Mapping[str, Any]
    ) -> None:
        names = {id(module): name for name, module in shape.named_modules()}
        ffns = find_ffns(shape)
        rank = settings["attention"]
        attentions = find_attentions(shape) if rank else []
        top_k, gates = settings["top_k"], settings["gates"]
        context = Context()
        self._primitives = primitives
        self._ffns = {
            f"{names[id(site.layer)]}.{site.name}": GrowingFFN(site, i, top_k, gates, context)
            for i, site in enumerate(ffns)
        }
        self._attentions = {
            f"{names[id(site.layer)]}.{site.name}": AdaptedAttention(site, i, rank, context)
            for i, site in enumerate(attentions)
        }
        tasks = [p.task for p in primitives]
        builds_on = [foundation(p, tasks[:index]) for index, p in enumerate(primitives)]
        parts: list[GrowingPart] = [*self._ffns.values(), *self._attentions.values()]
        for part in parts:
            part.check(primitives)
            part.freeze(primitives, builds_on)

    def updates(self, task: int) -> Updates:
        """What a task adds, those that it builds on included.

        Raises:
            NotFixedError: Some layer's router weighs experts token by token.
        """
        found: dict[str, LowRank] = {}
        for place, ffn in self._ffns.items():
            if (working := ffn.routers.fixed(task)) is None:
                raise NotFixedError(
                    f"task {self._primitives[task].task!r}: the router of layer {ffn.layer} weighs "
                    f"its {len(ffn.routers.router(task))} experts token by token, and a LoRA adds "
                    "the same to all tokens"
                )
            owned = [(p, n) for p, count in self._counted(ffn) for n in range(count)]
            found |= self._joined(place, ffn.router_key, ffn.maps, [owned[e] for e in working])
        for place, part in self._attentions.items():
            owned = [(p, 0) for p in self._primitives if has_pairs(part.maps, part.prefix, p)]
            working = part.adapters(task)
            found |= self._joined(place, part.prefix, part.maps, [owned[a] for a in working])
        return found

    def _counted(self, ffn: GrowingFFN) -> list[tuple[Primitive, int]]:
        return list(zip(self._primitives, ffn.added, strict=True))

    def _joined(
        self,
        place: str,
        prefix: str,
        maps: Mapping[str, nn.Module],
        experts: Sequence[tuple[Primitive, int]],
    ) -> dict[str, LowRank]:
        """The updates of a part's maps by experts that work together: a primitive's `n`-th each."""
        scales = sorted({p.lora_alpha / p.rank for p, _ in experts})
        if len(scales) > 1:
            raise NotFixedError(
                f"{place}: its experts have the scales {', '.join(map(str, scales))}, and a LoRA "
                "has one for each linear map"
            )
        found = {}
        for name in maps if experts else ():
            updates = []
            for primitive, number in experts:
                A, B = (primitive.experts[f"{prefix}.{name}.{side}"][number] for side in "AB")
                alpha = primitive.lora_alpha * len(A) / primitive.rank
                updates.append(LowRank(A, B, alpha))
            found[f"{place}.{name}"] = joined(updates)
        return found


@torch.no_grad()
def merge(base: nn.Module, updates: Updates) -> None:
    """Add updates to the weights of a base, in place: each is rounded to its dtype once.

    Args:
        base: With its weights.
        updates: By the names of its linear maps.

    Raises:
        NotFixedError: A map shares its weight with another part, which would change, too.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name in updates:
        if len(shared := owners[id(base.get_submodule(name).weight)]) > 1:
            raise NotFixedError(f"{' and '.join(shared)} are one weight; it can't be merged into")
    for name, update in updates.items():
        weight = base.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        A, B = (side.to(weight.device, torch.float32) for side in (update.A, update.B))
        weight.copy_(weight.float().addmm_(B, A, alpha=update.scale))
