"""The kernels beside their formulas on a small example, before they are relied on."""

from __future__ import annotations

import torch
from torch import Tensor

from cmoe.modeling.kernels import functions, reference
from cmoe.modeling.kernels.reference import Choice, Rows

TOKENS, WIDTH, INNER, EXPERTS, RANK = 40, 96, 160, 5, 8


@torch.no_grad()
def difference(device: torch.device) -> float:
    """By how much kernels and formulas differ, in parts of the largest value, in both dtypes."""
    return max(_difference(device, dtype) for dtype in (torch.float32, torch.bfloat16))


def _difference(device: torch.device, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        normal = torch.randn(shape, generator=generator).div_(shape[-1] ** 0.5)
        return normal.to(device, dtype)

    u, router = drawn(TOKENS, WIDTH), drawn(EXPERTS, WIDTH)
    gate, up = drawn(TOKENS, INNER), drawn(TOKENS, INNER)
    As = drawn(EXPERTS * RANK, WIDTH), drawn(EXPERTS * RANK, WIDTH)
    Bs = drawn(EXPERTS * RANK, INNER), drawn(EXPERTS * RANK, INNER)
    experts = torch.arange(EXPERTS, device=device).repeat_interleave(RANK)
    rows = Rows(experts, torch.full((len(experts),), 2.0, device=device), len(experts))
    choice = Choice(2, renormalized=True)
    gates = reference.route(u, router, choice).gates
    shrunk = reference.shrink(u, As, gates, rows)
    pairs = [
        (functions.route(u, router, choice).gates, gates),
        *zip(functions.shrink(u, As, gates, rows), shrunk, strict=True),
        (
            functions.expand_swiglu(gate, up, shrunk[0], shrunk[1], *Bs, rows.learned),
            reference.expand_swiglu(gate, up, shrunk[0], shrunk[1], *Bs),
        ),
    ]
    return max(
        ((found.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
        for found, expected in pairs
    )
