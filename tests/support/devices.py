"""Where the tests of the network, the methods and the engine compute: `CMOE_TEST_DEVICE`.

`cpu`, which is the default, a GPU (`cuda`, `cuda:1`), or `pretended`: the CPU, where tests of the
network and the methods fail as a GPU would fail for tensors that were left behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from support.pretended import Pretended

PRETENDED = "pretended"


def chosen(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: It is neither the CPU nor a GPU that is there.
    """
    if name == PRETENDED:
        Pretended().__enter__()  # as long as the process lives
        return torch.device("cuda")
    count = torch.cuda.device_count()
    there = ["cpu", PRETENDED, *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if name not in there:
        raise ValueError(f"CMOE_TEST_DEVICE is {name!r}; there is {', '.join(there)}")
    return torch.device(name)


DEVICE = chosen(os.environ.get("CMOE_TEST_DEVICE", "cpu"))
if not torch.cuda.is_available() or DEVICE.type == "cpu":
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed takes a GPU that is there
BACKEND = "nccl" if DEVICE.type == "cuda" else "gloo"


def on_device(test: Callable[..., Any]) -> Callable[..., Any]:
    """Put what a test or a fixture makes without naming a device on the tests' device."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> Any:
        with DEVICE:
            return test(*args, **kwargs)

    return run
