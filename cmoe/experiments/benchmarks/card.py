"""What a card can do at most, as measured on it, and what that makes of a computation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from cmoe.experiments.benchmarks.timing import device_seconds

COPIED = {"cuda": 2**30, "cpu": 2**25}  # bytes
MATRIX = {"cuda": 8192, "cpu": 512}  # rows and columns


class Limit(NamedTuple):
    """The least time of a computation, in seconds, and whether operations or bytes need it."""

    seconds: float
    by: str


@dataclass(frozen=True)
class Card:
    """A device's own limits.

    Attributes:
        bandwidth: Bytes per second, read and written ones together.
        rate: Operations per second of a matrix product in the dtype that is measured.
    """

    bandwidth: float
    rate: float

    @classmethod
    def measured(cls, device: str, dtype: torch.dtype) -> Card:
        """By copying, and by a product of square matrices."""
        kind = torch.device(device).type
        source = torch.zeros(COPIED[kind], dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copying = device_seconds(partial(target.copy_, source), device)
        size = MATRIX[kind]
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        out = torch.empty_like(a)
        multiplying = device_seconds(partial(torch.mm, a, b, out=out), device)
        return cls(2 * source.nbytes / copying, 2 * size**3 / multiplying)

    def limit(self, *, operations: float, moved: float) -> Limit:
        """Of a computation that overlaps both perfectly.

        Args:
            operations: That it does.
            moved: Bytes that it reads and writes.
        """
        limits = Limit(operations / self.rate, "operations"), Limit(moved / self.bandwidth, "bytes")
        return max(limits)
