"""One worker of the group whose all-reduce is measured, as a run's workers are placed.

Its code travels with it, by value, as a scout's.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

ROUNDS = 5  # of each size; the quickest counts
WARM_UP = 1  # before them: connections are made at first use


class Member:
    """A process of the group."""

    def __init__(self) -> None:
        self._at = "starting"

    def about(self) -> dict[str, Any]:
        """Where it is: Ray's node, its address, a free port, and its GPUs' numbers there."""
        import ray

        context = ray.get_runtime_context()
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        gpus = context.get_accelerator_ids().get("GPU", [])
        return {"node": context.get_node_id(), "address": address, "port": port, "gpus": gpus}

    def at(self) -> str:
        """What it does at the moment."""
        return self._at

    def join(
        self, rank: int, workers: int, address: str, gpus: Sequence[str], mine: int, wait_s: float
    ) -> str:
        """Join the group, as Ray Train lets a run's workers.

        Args:
            rank: This one's.
            workers: How many there are.
            address: Of the first one, with its port.
            gpus: Of all members on this machine; all see all, so that they reach each other.
            mine: This one's place among them.
            wait_s: Seconds to wait for the others.

        Returns:
            The backend.
        """
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self._at = f"reaching the first worker at {address} and joining the group"
        import torch
        import torch.distributed as dist

        self._device = torch.device("cuda", mine) if gpus else torch.device("cpu")
        if gpus:
            torch.cuda.set_device(self._device)
        self._rank, self._workers = rank, workers
        backend = "nccl" if gpus else "gloo"
        dist.init_process_group(
            backend,
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=workers,
            timeout=timedelta(seconds=wait_s),
        )
        return backend

    def reduce(self, size: int) -> float:
        """The least seconds that an all-reduce of so many bytes of float32 took.

        Raises:
            ArithmeticError: The sum is wrong.
        """
        import torch
        import torch.distributed as dist

        self._at = f"an all-reduce of {size / 2**20:g} MiB"
        values = torch.empty(size // 4, device=self._device)

        def fill() -> None:
            values.fill_(self._rank + 1)

        seconds = self._timed(fill, lambda: dist.all_reduce(values))
        right = self._workers * (self._workers + 1) / 2
        if not bool((values == right).all()):
            raise ArithmeticError(f"{self._at} of {self._workers} workers gives a wrong sum")
        return seconds

    def links(self, pairs: Sequence[tuple[int, int]], size: int) -> list[float | None]:
        """The least seconds that so many bytes take from one worker to another, pair by pair.

        Args:
            pairs: Ranks; one pair at a time, so that none takes another's bandwidth.
            size: Bytes.

        Returns:
            For each pair; None for those that this worker is none of.
        """
        import torch
        import torch.distributed as dist

        values = torch.zeros(size // 4, device=self._device)
        found: list[float | None] = []
        for first, second in pairs:
            self._at = f"exchanging {size / 2**20:g} MiB between workers {first} and {second}"

            def there_and_back(first: int = first, second: int = second) -> None:
                if self._rank == first:
                    dist.send(values, second)
                    dist.recv(values, second)
                elif self._rank == second:
                    dist.recv(values, first)
                    dist.send(values, first)

            taken = self._timed(lambda: None, there_and_back) / 2
            found.append(taken if self._rank in (first, second) else None)
        return found

    def _timed(self, prepare: Callable[[], Any], act: Callable[[], Any]) -> float:
        """The least seconds of some rounds that all workers make together."""
        import torch
        import torch.distributed as dist

        on_gpu = self._device.type == "cuda"
        least = float("inf")
        for turn in range(WARM_UP + ROUNDS):
            prepare()
            dist.barrier(device_ids=[self._device.index] if on_gpu else None)
            if on_gpu:
                torch.cuda.synchronize()
            start = time.perf_counter()
            act()
            if on_gpu:
                torch.cuda.synchronize()
            if turn >= WARM_UP:
                least = min(least, time.perf_counter() - start)
        return least
