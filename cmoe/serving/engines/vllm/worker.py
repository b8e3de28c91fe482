"""A worker of vLLM's whose "LoRA manager" is a store: routed experts in the decoder's own layers.

A request's task is its `LoRARequest`: its id is the task's index and 1, its name the digest of the
primitive's record, its path the store. vLLM itself carries it to every token of every step, keeps
apart what its prefix cache has of each, and asks for a primitive before the step that needs it.
None of vLLM's own LoRA layers is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest
from vllm.model_executor.models.utils import PPMissingLayer
from vllm.platforms import current_platform

from cmoe.modeling.base import ATTENTION_NAMES, FFN_NAMES
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE
from cmoe.serving.engines.vllm.experts import (
    CapacityError,
    RoutedAdapters,
    RoutedExperts,
    pairs_of,
)
from cmoe.serving.engines.vllm.layers import (
    Call,
    Grown,
    GrownLinear,
    find_layers,
    find_part,
    grown_linears,
    hidden_states,
)
from cmoe.serving.engines.vllm.loading import pad_heads, prepare_pictures_as_trained
from cmoe.serving.engines.vllm.settings import SETTINGS, Capacity
from cmoe.store.log import Store

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker

WARMUP = "warmup_"  # vLLM's own requests, before the first


class Worker(_Worker):
    """What vLLM's `worker_cls` names."""

    def init_device(self) -> None:
        prepare_pictures_as_trained()
        super().init_device()
        if current_platform.is_cpu():
            pad_heads()
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


class Primitives:
    """Stands where vLLM has its LoRA manager.

    Args:
        model: vLLM's; its decoder's layers are wrapped in place.
        store: Of the primitives; nobody else refreshes it.
        capacity: What room is made for, once and for all.
        tokens: The most tokens of a step.
        like: For dtype and device.
    """

    def __init__(
        self, model: nn.Module, store: Store, capacity: Capacity, tokens: int, like: Tensor
    ) -> None:
        self.store, self.capacity = store, capacity
        self._tasks: list[str] = []
        self._tasks_n = torch.full((tokens,), BASE, dtype=torch.long, device=like.device)
        self._layers = [*self._wrapped(model, like)]

    def _wrapped(self, model: Any, like: Tensor) -> Iterator[_Layer]:
        settings, capacity = self.store.header.settings, self.capacity
        rank = settings["attention"]
        decoder = model.get_language_model() if hasattr(model, "get_language_model") else model
        merged = getattr(decoder, "packed_modules_mapping", None) or model.packed_modules_mapping
        for index, layer in enumerate(find_layers(decoder)):
            if isinstance(layer, PPMissingLayer):
                continue
            name, mlp, call = *find_part(layer, index, FFN_NAMES), Call()
            linears = grown_linears(mlp, merged, capacity.rows, call, like)
            first = next(iter(linears.values()))
            routed = RoutedExperts(
                index,
                first.input_size,
                settings["top_k"],
                settings["gates"],
                capacity,
                like,
            )
            setattr(layer, name, Grown(mlp, linears, self._gates_of(routed), call))
            adapters, adapted = None, {}
            if rank:
                name, attention, call = *find_part(layer, index, ATTENTION_NAMES), Call()
                adapted = grown_linears(attention, merged, capacity.adapter_rows, call, like)
                adapters = RoutedAdapters(index, rank, capacity, like)
                setattr(layer, name, Grown(attention, adapted, self._adapters_of(adapters), call))
            yield _Layer(routed, linears, adapters, adapted)

    def _gates_of(self, routed: RoutedExperts) -> Callable[..., Tensor]:
        def gates(*args: Any, **kwargs: Any) -> Tensor:
            x_nd = hidden_states(args, kwargs)
            found: Tensor = routed(x_nd, self._tasks_n[: len(x_nd)])
            return found

        return gates

    def _adapters_of(self, adapters: RoutedAdapters) -> Callable[..., Tensor]:
        def gates(*args: Any, **kwargs: Any) -> Tensor:
            found: Tensor = adapters(self._tasks_n[: len(hidden_states(args, kwargs))])
            return found

        return gates

    @torch.inference_mode()  # the stacks were made in it
    def add_adapter(self, request: LoRARequest) -> bool:
        """Take up a store's primitives, up to the one that a request names.

        Raises:
            StorageError: One can't be read.
            CapacityError: There is no room for them.
            ValueError: The request names another primitive than the store has.
        """
        task = request.lora_int_id
        if task <= len(self._tasks):
            return False
        self.store.refresh()
        records = self.store.records()
        if task > len(records) or records[task - 1].digest != request.lora_name:
            raise ValueError(
                f"{self.store.url}: its primitive {task - 1} isn't {request.lora_name}; it has "
                f"{len(records)}"
            )
        if task > self.capacity.tasks:
            raise CapacityError("tasks", task, self.capacity.tasks)
        new = [self.store.read(index) for index in range(len(self._tasks), task)]
        for layer in self._layers:
            layer.require_places(new)
            layer.require_room(new)
        for primitive in new:  # in order: a router names the experts before it
            below = primitive.builds_on
            foundation = BASE if below is None else self._tasks.index(below)
            for layer in self._layers:
                layer.append(primitive, foundation)
            self._tasks.append(primitive.task)
        return True

    def set_active_adapters(self, requests: Collection[LoRARequest], mapping: LoRAMapping) -> None:
        """Write a step's tasks, token by token, where the layers read them."""
        for request in sorted(requests, key=lambda each: each.lora_int_id):
            if not request.lora_name.startswith(WARMUP):
                self.add_adapter(request)
        ids = np.asarray(mapping.index_mapping, dtype=np.int64) - 1
        tasks_n = torch.from_numpy(np.where(ids < len(self._tasks), ids, BASE))
        self._tasks_n.fill_(BASE)
        # Of a step's own memory: one that is used again could change before it is copied.
        self._tasks_n[: len(tasks_n)].copy_(tasks_n)

    # What else the runner asks of a LoRA manager. A log is only added to.

    def list_adapters(self) -> set[int]:
        return set(range(1, len(self._tasks) + 1))

    def remove_adapter(self, adapter_id: int) -> bool:
        return False

    def remove_all_adapters(self) -> None:
        """Nothing is removed."""

    def pin_adapter(self, adapter_id: int) -> bool:
        return True

    def supports_tower_connector_lora(self) -> bool:
        return False

    def add_dummy_lora(self, request: LoRARequest, rank: int) -> bool:
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield


class _Layer:
    """What is grown of one decoder layer."""

    def __init__(
        self,
        routed: RoutedExperts,
        linears: Mapping[str, GrownLinear],
        adapters: RoutedAdapters | None,
        adapted: Mapping[str, GrownLinear],
    ) -> None:
        self.routed, self.linears = routed, linears
        self.adapters, self.adapted = adapters, adapted

    def require_places(self, primitives: Sequence[Primitive]) -> None:
        """Refuse a primitive that would answer here without a part of it."""
        prefix = f"layers.{self.routed.layer}."
        places = {
            f"{start}{name}.{side}"
            for start, linears in ((prefix, self.linears), (f"{prefix}attention.", self.adapted))
            for linear in linears.values()
            for name in linear.names
            for side in "AB"
        }
        for primitive in primitives:
            here = {name for name in primitive.experts if name.startswith(prefix)}
            if lost := sorted(here - places):
                raise ValueError(
                    f"{lost[0]} of task {primitive.task!r} has no place in vLLM's layer, which has "
                    f"{', '.join(sorted(places))}"
                )

    def require_room(self, primitives: Sequence[Primitive]) -> None:
        self.routed.require_room(primitives, next(iter(self.linears.values())).names[0])
        if self.adapters is not None:
            first = next(iter(self.adapted.values())).names[0]
            self.adapters.require_room(primitives, first)

    def append(self, primitive: Primitive, foundation: int) -> None:
        prefix = f"layers.{self.routed.layer}"
        found = {n: pairs_of(primitive, prefix, m.names) for n, m in self.linears.items()}
        some = next(iter(found.values()))
        at = self.routed.append(primitive, foundation, 0 if some is None else len(some[0][0]))
        _put(self.linears, found, at)
        if self.adapters is not None:
            prefix = f"{prefix}.attention"
            found = {n: pairs_of(primitive, prefix, m.names) for n, m in self.adapted.items()}
            adds = next(iter(found.values())) is not None
            _put(self.adapted, found, self.adapters.append(primitive, foundation, adds=adds))


def _put(
    linears: Mapping[str, GrownLinear],
    found: Mapping[str, list[tuple[Tensor, Tensor]] | None],
    at: int,
) -> None:
    for name, linear in linears.items():
        if (pairs := found[name]) is not None:
            linear.put(at, pairs)
