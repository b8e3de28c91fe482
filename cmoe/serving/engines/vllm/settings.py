"""Settings of the vLLM engine. What is vLLM's own has vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field

from cmoe.common.bounds import require

SETTINGS = "cmoe"  # our worker's key of vLLM's `additional_config`


@dataclass(frozen=True)
class Capacity:
    """What an engine has room for, and pays for in every step, whether it is used or not.

    Attributes:
        tasks: Of the store.
        experts: Of a layer.
        rows: Of a layer's experts: the sum of their ranks.
        adapter_rows: Of a layer's adapters of attention, likewise.
    """

    tasks: int = 32
    experts: int = 64
    rows: int = 512
    adapter_rows: int = 256

    def __post_init__(self) -> None:
        section = "engine.vllm.capacity"
        require(self, section, "tasks", "experts", "rows", "adapter_rows", least=1)


@dataclass(frozen=True)
class VllmConfig:
    """How vLLM answers.

    Attributes:
        capacity: The most that a store may have; a larger one is refused until this is raised.
        max_model_len: Tokens of a prompt and its answer; null takes the most that the limits of a
            request allow.
        gpu_memory_utilization: Share of a GPU's memory that a replica takes.
        cpu_cache_gib: Memory of the cache of a replica on CPUs, in GiB.
        prefix_caching: Keep the beginnings of prompts, for others of the same task.
        quantization: How the base is quantised, as vLLM names it; null reads it from the base.
        tensor_parallel: GPUs that share a replica's base.
        eager: Don't capture CUDA graphs: a faster start, and slower answers.
    """

    capacity: Capacity = field(default_factory=Capacity)
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    cpu_cache_gib: int = 1
    prefix_caching: bool = True
    quantization: str | None = None
    tensor_parallel: int = 1
    eager: bool = False

    def __post_init__(self) -> None:
        section = "engine.vllm"
        require(self, section, "max_model_len", "cpu_cache_gib", "tensor_parallel", least=1)
        require(self, section, "gpu_memory_utilization", above=0)
        if self.gpu_memory_utilization > 1:
            raise ValueError(
                f"{section}.gpu_memory_utilization is {self.gpu_memory_utilization}; at most 1"
            )
