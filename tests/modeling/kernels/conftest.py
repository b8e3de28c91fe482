"""Kernels run on the tests' GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

import pytest
import torch
from support.devices import DEVICE

from cmoe.modeling.kernels import choice


@pytest.fixture(autouse=True)
def triton_here() -> None:
    if not choice.installed():
        pytest.skip("triton isn't installed: the kernels aren't tested")
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("a device that pretends runs no kernels")
    if DEVICE.type == "cpu" and not choice.interpreted():
        pytest.skip("vLLM is installed: Triton isn't told to interpret kernels")
