"""A frozen base whose decoder's linear maps are kept in 4 or 8 bits, by bitsandbytes.

Vision tower, projector, embeddings and the output's map stay in the base's dtype. A test holds the
maps against those of transformers' own `BitsAndBytesConfig`, bit for bit. They are made here all
the same: of the weights as they lie in memory, so that the base's digest is taken of these first
and is one for all devices, which round in ways of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cmoe.common.packages import lacking
from cmoe.modeling.base import DIGEST, UnsupportedModelError, find_decoder, fingerprint
from cmoe.modeling.settings import Quantization

OUTLIER = 6.0
"""From here on an activation of LLM.int8() is multiplied in the base's dtype: its paper's value."""


def require_bitsandbytes(quantization: Quantization) -> None:
    """Refuse a quantisation whose package isn't installed.

    Raises:
        UnsupportedModelError: Says how to install it.
    """
    if (lack := lacking("bitsandbytes", "bitsandbytes", "quantized")) is not None:
        raise UnsupportedModelError(f"model.quantization is {quantization}, and {lack}")


def quantize(model: nn.Module, quantization: Quantization, device: torch.device) -> None:
    """Quantise a base in place and bring it to a device; only there its maps are packed.

    Args:
        model: On the CPU, in the dtype that it is to compute in.
        quantization: `nf4`, QLoRA's 4 bits, or `int8`, LLM.int8().
        device: Where it goes.

    Raises:
        UnsupportedModelError: bitsandbytes isn't installed.
    """
    require_bitsandbytes(quantization)
    # It says that activations are cast, each time, and that it lacks a kernel that isn't used.
    for name in ("autograd._functions", "backends.cpu.ops"):
        logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)
    digest = f"{fingerprint(model)}-{quantization}"
    decoder = find_decoder(model)
    for name, linear in _maps(decoder):
        decoder.set_submodule(name, (_nf4 if quantization == "nf4" else _int8)(linear))
    setattr(model, DIGEST, digest)
    model.to(device)


def dequantize(model: nn.Module) -> None:
    """Put plain linear maps of the rounded weights in the place of quantised ones, in place."""
    from bitsandbytes.functional import dequantize_4bit

    decoder = find_decoder(model)
    for name, linear in _maps(decoder):
        state = getattr(linear.weight, "quant_state", None)
        if state is not None:
            weight = dequantize_4bit(linear.weight.data, state)
        else:
            rows: Any = linear.state if linear.weight.SCB is None else linear.weight
            weight = rows.CB * (rows.SCB / 127).unsqueeze(1)
        with torch.device("meta"):
            plain = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)
        plain.weight = nn.Parameter(weight.to(linear.compute_dtype), requires_grad=False)
        plain.bias = linear.bias
        decoder.set_submodule(name, plain)


def _maps(decoder: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.Linear)]


def _nf4(linear: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    sizes = linear.in_features, linear.out_features, linear.bias is not None
    dtype, kind = linear.weight.dtype, {"quant_type": "nf4", "compress_statistics": False}
    made = Linear4bit(*sizes, compute_dtype=dtype, device="meta", **kind)
    made.weight = Params4bit(linear.weight.data, requires_grad=False, module=made, **kind)
    # Its other way for CPUs packs the weights anew in the first pass without gradients, computes in
    # bfloat16 whatever the dtype, and gives later passes no gradient.
    made.support_avx512bf16_for_cpu = False
    return _finished(made, linear)


def _int8(linear: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    sizes = linear.in_features, linear.out_features, linear.bias is not None
    made = Linear8bitLt(*sizes, has_fp16_weights=False, threshold=OUTLIER, device="meta")
    made.weight = Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    made.compute_dtype = linear.weight.dtype  # as of `Linear4bit`
    made.forward = partial(_flattened, made.forward)
    return _finished(made, linear)


def _flattened(forward: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """A map's answer, which what is added to it may change in place.

    LLM.int8() gives a view that was made within its autograd function, which nothing may change,
    unless its input has two dimensions.
    """
    return forward(u.reshape(-1, u.shape[-1])).view(*u.shape[:-1], -1)


def _finished(made: nn.Module, linear: nn.Linear) -> nn.Module:
    made.bias = linear.bias
    made.register_state_dict_post_hook(_leave_out)
    return made


def _leave_out(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """A quantised map comes from the base: checkpoints of a training don't keep its parts."""
    own = ("weight", "SCB", "weight_format")
    for name in [n for n in state if n.removeprefix(prefix).startswith(own)]:
        if name.startswith(prefix):
            del state[name]
