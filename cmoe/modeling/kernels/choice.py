"""Where the kernels compute the experts' pass: which devices, and which FFNs."""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmoe.modeling.base import UnsupportedModelError
from cmoe.modeling.settings import Kernels

logger = logging.getLogger(__name__)
SWIGLU = ("gate_proj", "up_proj", "down_proj")
"""The linear maps of the FFN that the kernels know: `down(silu(gate(u)) * up(u))`."""
MOST_APART = 3e-2  # of the largest value: bfloat16 rounds at 4e-3, in several places
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def installed() -> bool:
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's own interpreter runs kernels, slowly and on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on(device: torch.device, kernels: Kernels) -> bool:
    """Whether `model.kernels` means Triton's on a device."""
    if kernels == "torch" or not installed():
        return False
    if kernels == "triton":
        return interpreted() or (device.type == "cuda" and torch.cuda.is_available())
    return device.type == "cuda" and torch.cuda.is_available() and tried(device)


@cache
def tried(device: torch.device) -> bool:
    """Whether the kernels compute what their formulas say on a device; tried once a process.

    What a Triton, a driver and a card make of a kernel nobody can know before.
    """
    from cmoe.modeling.kernels.trial import difference

    try:
        apart = difference(device)
    except Exception as error:  # of Triton's compiler or the driver, whatever it is
        logger.warning("kernels can't be had on %s, torch computes the experts: %r", device, error)
        return False
    if apart > MOST_APART:
        logger.warning("kernels on %s are %.1e off, torch computes the experts", device, apart)
    return apart <= MOST_APART


def require_triton(gpu: bool) -> None:
    """Refuse `model.kernels` `triton` where kernels can't run.

    Args:
        gpu: Whether there is an NVIDIA GPU to run them.

    Raises:
        UnsupportedModelError: Says what is missing.
    """
    if not installed():
        raise UnsupportedModelError(
            "model.kernels is triton, and triton isn't installed: it comes with torch for CUDA; "
            "else set auto or torch"
        )
    if not gpu and not interpreted():
        raise UnsupportedModelError(
            "model.kernels is triton, and its kernels need a CUDA GPU; set auto or torch"
        )


def require_swiglu(layer: int, ffn: nn.Module) -> None:
    """Refuse `model.kernels` `triton` for another FFN than the kernels know.

    Raises:
        UnsupportedModelError: Names the layer.
    """
    if not is_swiglu(ffn):
        raise UnsupportedModelError(
            f"model.kernels is triton, and the FFN of layer {layer} ({type(ffn).__name__}) isn't "
            "down_proj(silu(gate_proj(u)) * up_proj(u)); set auto or torch"
        )


def is_swiglu(ffn: nn.Module) -> bool:
    """Whether an FFN's own forward pass computes `down(silu(gate(u)) * up(u))` and no more.

    It is run on stand-ins for its maps: names alone don't say whether it scales something, too.
    """
    children = dict(ffn.named_children())
    if not children.keys() >= set(SWIGLU):
        return False

    def gate(u: Tensor) -> Tensor:
        return 1.5 * u - 0.25

    def up(u: Tensor) -> Tensor:
        return 0.5 - 0.75 * u

    def down(u: Tensor) -> Tensor:
        return 2 * u - 1

    maps = dict(zip(SWIGLU, (gate, up, down), strict=True))
    itself = SimpleNamespace(**{**vars(ffn), **children, **maps})
    u = torch.linspace(-4, 4, 24, dtype=torch.float64, device="cpu").view(1, 4, 6)
    try:
        out = type(ffn).forward(itself, u)
    except Exception:  # a stranger's module: whatever it raises, it does something else
        return False
    return isinstance(out, Tensor) and torch.allclose(out, down(F.silu(gate(u)) * up(u)))


def sharded(module: nn.Module) -> bool:
    """Whether ZeRO 3 shards a module: its parameters are whole in their own forward pass alone."""
    return any(hasattr(p, "ds_id") for p in module.parameters())
