"""A worker of vLLM's whose "LoRA manager" is a store: routed experts in the decoder's own layers.

A request's task is its `LoRARequest`: its id is the task's index and 1, its name the digest of the
primitive's record, its path the store. vLLM itself carries it to every token of every step, keeps
apart what its prefix cache has of each, and asks for a primitive before the step that needs it. None
of vLLM's own LoRA layers is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.platforms import current_platform

from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE
from cmoe.serving.engines.vllm.experts import (
    Capacity,
    CapacityError,
    Pairs,
    RoutedAdapters,
    RoutedExperts,
    pairs_of,
)
from cmoe.store.log import Store

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker

SETTINGS = "cmoe"  # our key of vLLM's `additional_config`
WARMUP = "warmup_"  # vLLM's own requests, before the first


class Worker(_Worker):  # type: ignore[misc,valid-type]
    """What vLLM's `worker_cls` names."""

    def init_device(self) -> None:
        super().init_device()
        runner = self.model_runner
        runner.load_lora_model = MethodType(_load, runner)


def _load(runner: Any, model: nn.Module, vllm_config: Any, device: torch.device) -> nn.Module:
    """In the place of the runner's `load_lora_model`: wrap the decoder's layers."""
    settings = vllm_config.additional_config[SETTINGS]
    runner.lora_manager = Primitives(
        model,
        Store.follow(settings["store"]),
        Capacity(**settings["capacity"]),
        # Graphs pad a step's tokens.
        tokens=vllm_config.scheduler_config.max_num_batched_tokens + 512,
        like=torch.empty(0, dtype=vllm_config.model_config.dtype, device=device),
    )
    return model


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
        self, linear: nn.Module, names: Sequence[str], rows: int, call: Call, like: Tensor
    ) -> None:
        super().__init__()
        self.linear, self.names, self.call = linear, tuple(names), call
        self.by_rows = isinstance(linear, RowParallelLinear)
        if self.by_rows:
            inputs, self.sizes = linear.input_size_per_partition, [linear.output_size]
        else:
            inputs, self.sizes = linear.input_size, list(linear.output_partition_sizes)
        self.pairs = Pairs(inputs, self.sizes, rows, like)

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
        return A_nri, _part(B_nor, 1, self.sizes[number])

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
