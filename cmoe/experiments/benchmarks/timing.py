"""Time functions against each other, and measure what memory a call needs."""

from __future__ import annotations

import ctypes
import gc
import platform
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

STATUS = Path("/proc/self/status")


def compare(calls: Mapping[str, Callable[[], object]], rounds: int = 9) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` times in turn, so that a noisy minute hits all alike."""
    for call in calls.values():  # warm up
        call()
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            _synchronise()
            start = time.perf_counter()
            call()
            _synchronise()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def device_seconds(call: Callable[[], object], device: str, rounds: int = 20) -> float:
    """The median time of a call, as the device spends it.

    On a GPU by its own events: the host waits once, behind the last call.
    """
    for _ in range(3):  # warm up
        call()
    if not device.startswith("cuda"):
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return median(seconds)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    passed: list[float] = [a.elapsed_time(b) for a, b in pairwise(marks)]
    return median(passed) / 1e3


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """The median, over rounds, of one call's time in another's."""
    return median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def milliseconds(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return 1e3 * median(seconds)


def peak_bytes(call: Callable[[], object], device: str | torch.device) -> int:
    """What a call allocates at its peak: on a GPU by its allocator, else by the process's size."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    if platform.libc_ver()[0] == "glibc":  # give free memory back, or it would hide what is taken
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
