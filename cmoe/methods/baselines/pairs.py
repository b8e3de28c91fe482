"""Frozen LoRA pairs at work beside the adapter that PEFT keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gates = Callable[[], Tensor]


class Pair(NamedTuple):
    """One LoRA pair, or several that are stacked along their rank.

    The product of stacked pairs is the sum of their products.

    Attributes:
        A: [r, in].
        B: [out, r].
    """

    A: Tensor
    B: Tensor


def pairs_of(weights: Mapping[str, Tensor]) -> dict[str, Pair]:
    """The pairs of an adapter as PEFT names its tensors, by the map that each adapts."""
    ends = ".lora_A.weight", ".lora_B.weight"
    maps = [name.removesuffix(ends[0]) for name in weights if name.endswith(ends[0])]
    return {name: Pair(*(weights[name + end] for end in ends)) for name in maps}


def stacked(pairs: Iterable[Pair]) -> Pair:
    """Several pairs of one map as one."""
    A, B = zip(*pairs, strict=True)
    return Pair(torch.cat(A, 0), torch.cat(B, 1))


@contextmanager
def beside(
    module: nn.Module, pairs: Mapping[str, Pair], scale: float, gates: Gates | None = None
) -> Iterator[None]:
    """Add pairs to what their maps say, as long as the body runs.

    Args:
        module: Has the maps.
        pairs: By the name of their map in the module; on its device.
        scale: Of their products.
        gates: How much each row of `A` counts for each sample of the pass under way, [B, r]; all of
            them fully, if not given.
    """

    def adding(pair: Pair) -> Callable[..., Tensor]:
        def added(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            hidden_bsr = F.linear(args[0], pair.A)
            if gates is not None:
                hidden_bsr = hidden_bsr * gates().unsqueeze(1).to(hidden_bsr)
            return out + scale * F.linear(hidden_bsr, pair.B)

        return added

    with ExitStack() as stack:
        for name, pair in pairs.items():
            handle = module.get_submodule(name).register_forward_hook(adding(pair))
            stack.callback(handle.remove)
        yield
