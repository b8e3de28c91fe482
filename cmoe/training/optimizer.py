"""AdamW for weights of less than single precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

WEIGHTS = "fp32"  # in the optimizer's state


class MasterAdamW(torch.optim.AdamW):
    """AdamW on fp32 copies of the parameters, which take the rounded copies after each step.

    The parameters' gradients are summed in fp32, too. It is what DeepSpeed's ZeRO optimizers do for
    bf16. Its own optimizer for ZeRO 0 (`FP16_UnfusedOptimizer`) does not: it sums gradients and
    measures their norm in bf16, and begins with a step on gradients of zero.

    Args:
        parameters: What is trained.
        lr: As in AdamW.
        weight_decay: As in AdamW.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float
    ) -> None:
        self.parameters = list(parameters)
        self.masters = [p.detach().float() for p in parameters]
        super().__init__(self.masters, lr=lr, weight_decay=weight_decay)
        for p in parameters:
            p.grad_dtype = torch.float32

    def allocate_gradients(self) -> None:
        """Give every parameter a gradient of zeros that has none.

        DeepSpeed would give one in the parameter's dtype to those that a batch leaves out.
        """
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p, dtype=torch.float32)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for master, p in zip(self.masters, self.parameters, strict=True):
            master.grad = p.grad
        super().step(closure)
        for master, p in zip(self.masters, self.parameters, strict=True):
            master.grad = None
            p.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {WEIGHTS: self.masters}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved: list[Tensor] = state_dict[WEIGHTS]
        super().load_state_dict({n: part for n, part in state_dict.items() if n != WEIGHTS})
        for master, p, tensor in zip(self.masters, self.parameters, saved, strict=True):
            master.copy_(tensor)
            p.copy_(master)
