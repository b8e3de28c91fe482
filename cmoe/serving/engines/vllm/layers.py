"""Parts of vLLM's decoder layers, found and wrapped: their linear maps gain LoRA pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear

from cmoe.modeling.base import LAYERS_NAMES
from cmoe.serving.engines.vllm.experts import Pairs


class Call:
    """What the linear maps of an FFN or an attention share during one call of it."""

    gates: Tensor | None = None


class GrownLinear(nn.Module):
    """A linear layer of vLLM's, merged or not, with LoRA pairs of each of its maps.

    Args:
        linear: The layer.
        names: Of its maps, in their order.
        rows: Capacity.
        call: Shared with the part that it belongs to.
        like: For dtype and device.
    """

    def __init__(
        self, linear: Any, names: Sequence[str], rows: int, call: Call, like: Tensor
    ) -> None:
        super().__init__()
        self.linear, self.names, self.call = linear, tuple(names), call
        self.sizes: list[int]
        self.by_rows = isinstance(linear, RowParallelLinear)
        if self.by_rows:
            inputs, self.sizes = linear.input_size_per_partition, [linear.output_size]
        else:
            inputs, self.sizes = linear.input_size, list(linear.output_partition_sizes)
        # Where the base itself has one map, vLLM may still see several parts of its output.
        outputs = self.sizes if len(self.names) > 1 else [sum(self.sizes)]
        self.pairs = Pairs(inputs, outputs, rows, like)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # what vLLM reads of the layer itself
            return getattr(super().__getattr__("linear"), name)

    def put(self, at: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put this process's share of a primitive's pairs into the rows from `at` on."""
        self.pairs.put(at, [self._share(n, A, B) for n, (A, B) in enumerate(pairs)])

    def _share(self, number: int, A_nri: Tensor, B_nor: Tensor) -> tuple[Tensor, Tensor]:
        if self.by_rows:
            return _part(A_nri, 2, self.pairs.A.shape[1]), B_nor
        if len(self.names) > 1:
            return A_nri, _part(B_nor, 1, self.sizes[number])
        parts = zip(B_nor.split(_whole_sizes(self.linear), 1), self.sizes, strict=True)
        return A_nri, torch.cat([_part(whole, 1, size) for whole, size in parts], 1)

    def forward(self, u: Tensor) -> Any:
        given = self.linear(u)
        gates = self.call.gates
        if gates is None:
            return given
        inner = self.pairs.inner(u)
        if self.by_rows and get_tensor_model_parallel_world_size() > 1:
            inner = tensor_model_parallel_all_reduce(inner)
        self.pairs.add_to(given[0] if isinstance(given, tuple) else given, inner, gates)
        return given


def _whole_sizes(linear: Any) -> list[int]:
    """Outputs of the parts of a map, over all processes."""
    if isinstance(linear, QKVParallelLinear):  # its own sizes count repeated heads
        key, value = linear.head_size, linear.v_head_size
        heads = linear.total_num_kv_heads
        return [linear.total_num_heads * key, heads * key, heads * value]
    return [*getattr(linear, "output_sizes", [linear.output_size])]


def _part(whole: Tensor, dim: int, size: int) -> Tensor:
    """This process's part of a dimension; key-value heads fewer than processes lie on several."""
    parts = whole.shape[dim] // size
    if parts == 1:
        return whole
    mine = get_tensor_model_parallel_rank() * parts // get_tensor_model_parallel_world_size()
    return whole.narrow(dim, mine * size, size)


class Grown(nn.Module):
    """A part of a decoder layer, an FFN or an attention, whose linear maps have LoRA pairs.

    Args:
        part: The part.
        linears: Its linear layers by the name of their attribute.
        gates: Makes the rows' gates of the part's arguments.
        call: Shared with the linear layers.
    """

    def __init__(
        self,
        part: nn.Module,
        linears: Mapping[str, GrownLinear],
        gates: Callable[..., Tensor],
        call: Call,
    ) -> None:
        super().__init__()
        self.part, self.gates, self.call = part, gates, call
        for name, linear in linears.items():
            setattr(part, name, linear)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("part"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.call.gates = self.gates(*args, **kwargs)
        try:
            return self.part(*args, **kwargs)
        finally:
            self.call.gates = None


def find_layers(decoder: nn.Module) -> nn.ModuleList:
    """The decoder's layers; those of other processes of a pipeline are stand-ins."""
    lists = (getattr(m, name, None) for m in decoder.modules() for name in LAYERS_NAMES)
    found = next((each for each in lists if isinstance(each, nn.ModuleList)), None)
    if found is None:
        raise ValueError(
            f"vLLM's {type(decoder).__name__} has no list of layers; looked for "
            f"{', '.join(LAYERS_NAMES)}"
        )
    if any(type(layer).__module__.startswith("transformers.") for layer in found):
        raise ValueError(
            f"vLLM has no decoder of its own for this base and runs transformers' "
            f"{type(found[0]).__name__}, which can't carry experts there"
        )
    return found


def find_part(layer: nn.Module, index: int, names: Sequence[str]) -> tuple[str, nn.Module]:
    """A layer's FFN or attention: the first part of one of the names that has linear maps."""
    for name in names:
        part = getattr(layer, name, None)
        if isinstance(part, nn.Module) and any(_is_linear(m) for m in part.children()):
            return name, part
    children = ", ".join(f"{name} ({type(m).__name__})" for name, m in layer.named_children())
    raise ValueError(
        f"vLLM's decoder layer {index} ({type(layer).__name__}) has no part with linear maps named "
        f"{', '.join(names)}; found {children}"
    )


def hidden_states(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """What a part of a layer reads, beside positions."""
    hidden_nd: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[-1]
    return hidden_nd


def _is_linear(module: nn.Module) -> bool:
    return hasattr(module, "input_size") and hasattr(module, "output_size")


def grown_linears(
    part: nn.Module, merged: Mapping[str, Sequence[str]], rows: int, call: Call, like: Tensor
) -> dict[str, GrownLinear]:
    """The linear layers of a part, in their order, not yet in their places."""
    return {
        name: GrownLinear(linear, merged.get(name, [name]), rows, call, like)
        for name, linear in part.named_children()
        if _is_linear(linear)
    }
