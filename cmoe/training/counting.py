"""What a worker adds up over the batches of a pass, and over steps between two reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Told:
    """Losses of steps on the device, and tokens of their batches, until they are reported."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._tokens = 0

    def add(self, loss: Tensor, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self._losses.append(loss)
        self._tokens += sum(batch["input_ids"].numel() for batch in batches)

    def taken(self) -> Tensor:
        """The losses, and the tokens behind them; none are left here."""
        values = torch.stack([*self._losses, self._losses[0].new_tensor(self._tokens)])
        self._losses, self._tokens = [], 0
        return values


class Counted:
    """Computes, and counts the tokens that it saw, padding included."""

    def __init__(self, compute: Callable[[Mapping[str, Tensor]], Any]) -> None:
        self._compute = compute
        self.tokens = 0

    def __call__(self, batch: Mapping[str, Tensor]) -> Any:
        self.tokens += batch["input_ids"].numel()
        return self._compute(batch)


class Sum:
    """Adds what is computed up on the device; a pass over samples keeps nothing of it."""

    def __init__(self, compute: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        self._compute = compute
        self.total: Tensor | None = None

    def add(self, batch: Mapping[str, Tensor]) -> None:
        part = self._compute(batch)
        self.total = part if self.total is None else self.total + part
