"""Prompts of one sample each, padded to batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_token(tokenizer: Any) -> int:
    """The token that pads; a base without one is padded with its end token, which is masked."""
    pad: int | None = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


def batched(
    prompts: Sequence[Mapping[str, Tensor]], pad: int, length: int | None = None
) -> dict[str, Tensor]:
    """The inputs of a batch: per-token tensors are padded on the left, per-image ones stacked.

    Images of several sizes or numbers of tiles are filled up with zeros at their ends, as
    processors do it; the base knows their sizes from its other inputs.

    Args:
        prompts: At least one.
        pad: Token that pads.
        length: Of each, in tokens: at least the longest prompt's; None takes that.
    """
    width = length or max(p["input_ids"].shape[1] for p in prompts)
    columns: dict[str, list[Tensor]] = {}
    for prompt in prompts:
        shape = prompt["input_ids"].shape
        for name, tensor in prompt.items():
            if tensor.shape == shape:
                fill = pad if name == "input_ids" else 0
                tensor = F.pad(tensor, (width - shape[1], 0), value=fill)
            columns.setdefault(name, []).append(tensor)
    return {name: torch.cat(_same_shape(tensors)) for name, tensors in columns.items()}


def _same_shape(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Fill tensors up with zeros to one shape; the first dimension stays as it is."""
    sides = [max(lengths) for lengths in zip(*(t.shape[1:] for t in tensors), strict=True)]
    return [
        F.pad(t, [n for i in range(t.ndim - 1, 0, -1) for n in (0, sides[i - 1] - t.shape[i])])
        for t in tensors
    ]
