"""Where the tests of the network, the methods and the engine compute: `CMOE_TEST_DEVICE`."""

from __future__ import annotations

import os

import torch


def chosen(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: It is neither the CPU nor a GPU that is there.
    """
    count = torch.cuda.device_count()
    there = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if name not in there:
        raise ValueError(f"CMOE_TEST_DEVICE is {name!r}; there is {', '.join(there)}")
    return torch.device(name)


DEVICE = chosen(os.environ.get("CMOE_TEST_DEVICE", "cpu"))
if DEVICE.type == "cpu":
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed takes a GPU that is there
BACKEND = "nccl" if DEVICE.type == "cuda" else "gloo"
