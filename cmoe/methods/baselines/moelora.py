"""MoELoRA as CoIN has it: LoRA experts at every linear map, all of them at work for every token.

Each adapted map has a router of its own, and no expert is left out (CoIN, arXiv 2403.08350,
section 4.3):

    y = P u + s sum_e softmax(W u)_e B_e A_e u

One adapter serves all tasks, and goes on training from one to the next: nothing is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmoe.methods.adapter import Adapter
from cmoe.methods.method import seed_of
from cmoe.methods.settings import MoELoRAConfig
from cmoe.modeling.base import compute_dtype, find_decoder
from cmoe.modeling.experts import fresh_pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Switch:
    """Whether the adapted maps of a model adapt."""

    on: bool = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base alone, as long as the body runs."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before


class MoELoRALinear(nn.Module):
    """A frozen linear map with a mixture of LoRA experts that changes nothing yet.

    Args:
        linear: The map.
        experts: How many.
        rank: Of each.
        scale: Of their sum.
        switch: Shared by all maps of a model.
        generator: Of the fresh weights.
    """

    def __init__(
        self,
        linear: nn.Linear,
        experts: int,
        rank: int,
        scale: float,
        switch: Switch,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.linear, self.experts, self.rank, self.scale = linear, experts, rank, scale
        self._switch = switch
        A, B = fresh_pair(experts, rank, linear, generator)
        bound = linear.in_features**-0.5
        router = torch.rand(experts, linear.in_features, generator=generator)
        like: dict[str, Any] = {"dtype": compute_dtype(linear), "device": linear.weight.device}
        self.A = nn.Parameter(A.flatten(0, 1).to(**like))
        self.B = nn.Parameter(B.transpose(1, 2).flatten(0, 1).to(**like))
        self.router = nn.Parameter(router.mul_(2 * bound).sub_(bound).to(**like))

    def forward(self, u: Tensor) -> Tensor:
        out: Tensor = self.linear(u)
        if not self._switch.on:
            return out
        gates = F.linear(u, self.router).float().softmax(-1).to(u.dtype)
        hidden = F.linear(u, self.A).unflatten(-1, (self.experts, self.rank))
        mixed = (hidden * gates.unsqueeze(-1)).flatten(-2)
        return out + self.scale * F.linear(mixed, self.B.T)


def add_moelora(
    module: nn.Module, experts: int, rank: int, scale: float, generator: torch.Generator
) -> Switch:
    """Adapt every linear map within a module, in place.

    Args:
        module: Its maps are frozen already.
        experts: At each map.
        rank: Of each expert.
        scale: Of the experts' sum.
        generator: Of the fresh weights.
    """
    switch = Switch()
    maps = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    for name, linear in maps:
        parent, _, leaf = name.rpartition(".")
        adapted = MoELoRALinear(linear, experts, rank, scale, switch, generator)
        setattr(module.get_submodule(parent), leaf, adapted)
    return switch


class MoELoRA(Adapter):
    """One mixture of LoRA experts, as CoIN has it.

    Args:
        base: Frozen, and its decoder's linear maps are wrapped in place.
        moelora: The adapter's size.
        seed: Of its fresh weights.
    """

    def __init__(self, base: PreTrainedModel, moelora: MoELoRAConfig, seed: int) -> None:
        super().__init__(base)
        self.config = moelora
        generator = torch.Generator().manual_seed(seed_of(seed, "moelora"))
        scale = moelora.lora_alpha / moelora.rank
        self._switch = add_moelora(
            find_decoder(base), moelora.experts, moelora.rank, scale, generator
        )
        self.module = base

    def settings(self) -> dict[str, Any]:
        return {"method": "moelora", **asdict(self.config)}

    def _weights(self) -> Mapping[str, Tensor]:
        return self.trained()

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained().items():
            parameter.copy_(weights[name])

    def _off(self) -> AbstractContextManager[None]:
        return self._switch.off()
