"""The kernels in Triton, and their launches.

No sum is split over programs and none is added by atomics; the sizes of tiles depend on shapes
alone. So the same batch gives the same bits again, and what an earlier task computes depends on
the experts alone that it knows: rows and experts up to a tile's edge are masked, not read.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmoe.modeling.kernels.choice import interpreted
from cmoe.modeling.kernels.reference import Choice, Routed, Rows

MAX_EXPERTS = 256  # of a layer: a token's probabilities lie in one program's registers


@triton.jit
def _tile(matrix, rows, columns, height, width, WIDEN: tl.constexpr):
    """A tile of a row-major matrix, 0 beyond its edges."""
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    tile = tl.load(matrix + rows[:, None] * width + columns[None, :], mask=inside, other=0.0)
    if WIDEN:  # the interpreter multiplies the bits of bf16 as integers
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _put(matrix, rows, columns, height, width, tile):
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    at = matrix + rows[:, None] * width + columns[None, :]
    tl.store(at, tile.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def _tokens(BN: tl.constexpr):
    # 64 bits: tokens times width may pass 2^31.
    return (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)


@triton.jit
def _route(
    hidden, weight, always, gates, probs, chosen, N, D, E,
    LIKELIEST: tl.constexpr, RENORMALIZED: tl.constexpr, ALWAYS: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, EP: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    n, e = _tokens(BN), tl.arange(0, EP)
    logits = tl.zeros((BN, EP), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        h, w = _tile(hidden, n, d, N, D, WIDEN), _tile(weight, e, d, E, D, WIDEN)
        logits = tl.dot(h, tl.trans(w), logits, input_precision="ieee")
    known = (e < E)[None, :]
    logits = tl.where(known, logits, -float("inf"))
    likely = tl.exp(logits - tl.max(logits, 1)[:, None])
    p = likely / tl.sum(likely, 1)[:, None]
    left = tl.where(known, p, -1.0)
    if ALWAYS:
        fixed = (tl.load(always + e, mask=e < E, other=0) != 0)[None, :]
        left = tl.where(fixed, -1.0, left)
    picked = tl.zeros((BN, EP), tl.float32)
    for _ in range(LIKELIEST):
        best = e[None, :] == tl.argmax(left, 1)[:, None]
        picked = tl.where(best, 1.0, picked)
        left = tl.where(best, -1.0, left)
    g = p * picked
    if RENORMALIZED:
        g = g / tl.sum(g, 1)[:, None]
    if ALWAYS:
        g = tl.where(fixed, 1.0, (p - 1.0 / E) * picked)
        picked = tl.where(fixed, 1.0, picked)
    _put(gates, n, e, N, E, g)
    _put(probs, n, e, N, E, p)
    _put(chosen, n, e, N, E, picked)


@triton.jit
def _shrink(
    u, A, A2, gates, row_expert, row_scale, h, h2, low, low2, N, D, R, E,
    TWO: tl.constexpr, SAVE: tl.constexpr,
    BN: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    n, r = _tokens(BN), tl.program_id(1) * BR + tl.arange(0, BR)
    acc = tl.zeros((BN, BR), tl.float32)
    acc2 = tl.zeros((BN, BR), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        x = _tile(u, n, d, N, D, WIDEN)
        acc = tl.dot(x, tl.trans(_tile(A, r, d, R, D, WIDEN)), acc, input_precision="ieee")
        if TWO:
            acc2 = tl.dot(x, tl.trans(_tile(A2, r, d, R, D, WIDEN)), acc2, input_precision="ieee")
    expert = tl.load(row_expert + r, mask=r < R, other=0)
    scale = tl.load(row_scale + r, mask=r < R, other=0.0)
    inside = (n[:, None] < N) & (r[None, :] < R)
    g = tl.load(gates + n[:, None] * E + expert[None, :], mask=inside, other=0.0) * scale[None, :]
    _put(h, n, r, N, R, acc * g)
    if SAVE:
        _put(low, n, r, N, R, acc)
    if TWO:
        _put(h2, n, r, N, R, acc2 * g)
        if SAVE:
            _put(low2, n, r, N, R, acc2)


@triton.jit
def _expanded(base, h, B, n, f, N, R, F, BN: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr,
              WIDEN: tl.constexpr):  # fmt: skip
    """`base + h B` of one tile, in fp32 but rounded as a tensor in between would be."""
    acc = tl.zeros((BN, BF), tl.float32)
    for r0 in range(0, R, BR):
        r = r0 + tl.arange(0, BR)
        x, b = _tile(h, n, r, N, R, WIDEN), _tile(B, r, f, R, F, WIDEN)
        acc = tl.dot(x, b, acc, input_precision="ieee")
    acc += _tile(base, n, f, N, F, True)
    return acc.to(base.dtype.element_ty).to(tl.float32)


@triton.jit
def _expand_swiglu(
    gate, up, h_gate, h_up, B_gate, B_up, out, N, R, F,
    BN: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    n, f = _tokens(BN), tl.program_id(1) * BF + tl.arange(0, BF)
    g = _expanded(gate, h_gate, B_gate, n, f, N, R, F, BN, BR, BF, WIDEN)
    u = _expanded(up, h_up, B_up, n, f, N, R, F, BN, BR, BF, WIDEN)
    silu = (g * tl.sigmoid(g)).to(out.dtype.element_ty).to(tl.float32)
    _put(out, n, f, N, F, silu * u)


@triton.jit
def _expand_swiglu_backward(
    gate, up, h_gate, h_up, B_gate, B_up, d_out, d_gate, d_up, N, R, F,
    BN: tl.constexpr, BR: tl.constexpr, BF: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    n, f = _tokens(BN), tl.program_id(1) * BF + tl.arange(0, BF)
    g = _expanded(gate, h_gate, B_gate, n, f, N, R, F, BN, BR, BF, WIDEN)
    u = _expanded(up, h_up, B_up, n, f, N, R, F, BN, BR, BF, WIDEN)
    d = _tile(d_out, n, f, N, F, True)
    s = tl.sigmoid(g)
    _put(d_up, n, f, N, F, d * g * s)
    _put(d_gate, n, f, N, F, d * u * s * (1.0 + g * (1.0 - s)))


def route(hidden_nd: Tensor, weight_ed: Tensor, choice: Choice) -> Routed:
    """As `reference.route`, for at most `MAX_EXPERTS` experts."""
    (tokens, width), experts = hidden_nd.shape, len(weight_ed)
    gates, probs = (hidden_nd.new_empty(tokens, experts, dtype=torch.float32) for _ in range(2))
    chosen = hidden_nd.new_empty(tokens, experts, dtype=torch.int8)
    padded = max(16, triton.next_power_of_2(experts))
    with torch.cuda.device_of(hidden_nd):
        _route[(triton.cdiv(tokens, 16),)](
            hidden_nd, weight_ed, choice.always, gates, probs, chosen, tokens, width, experts,
            LIKELIEST=choice.likeliest, RENORMALIZED=choice.renormalized,
            ALWAYS=choice.always is not None, BN=16, BD=64 if padded <= 64 else 32, EP=padded,
            **_options(),
        )  # fmt: skip
    return Routed(gates, probs, chosen.bool())


def shrink(
    u_ni: Tensor, As: tuple[Tensor, ...], gates_ne: Tensor, rows: Rows, *, save: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """As `reference.shrink` for one map or two; and `u A^T` itself, if it is to be saved."""
    (tokens, width), count = u_ni.shape, len(rows.experts)
    h = [u_ni.new_empty(tokens, count) for _ in As]
    low = [u_ni.new_empty(tokens, count) for _ in As if save]
    tile = _token_tile(tokens)
    with torch.cuda.device_of(u_ni):
        _shrink[triton.cdiv(tokens, tile), triton.cdiv(count, 32)](
            u_ni, As[0], As[-1], gates_ne, rows.experts, rows.scales, h[0], h[-1],
            low[0] if save else None, low[-1] if save else None,
            tokens, width, count, gates_ne.shape[1],
            TWO=len(As) == 2, SAVE=save, BN=tile, BR=32, BD=64, **_options(),
        )  # fmt: skip
    return h, low


def expand_swiglu(
    gate_nf: Tensor, up_nf: Tensor, h_gate_nr: Tensor, h_up_nr: Tensor, B_gate: Tensor, B_up: Tensor
) -> Tensor:
    """As `reference.expand_swiglu`, in one pass over gate and up."""
    out = torch.empty_like(gate_nf)
    _over_ffn(_expand_swiglu, gate_nf, up_nf, h_gate_nr, h_up_nr, B_gate, B_up, out)
    return out


def expand_swiglu_backward(
    gate_nf: Tensor,
    up_nf: Tensor,
    h_gate_nr: Tensor,
    h_up_nr: Tensor,
    B_gate: Tensor,
    B_up: Tensor,
    d_out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of what goes into SwiGLU, which is computed again: [n, f] of gate and of up."""
    d_gate, d_up = torch.empty_like(gate_nf), torch.empty_like(up_nf)
    _over_ffn(
        _expand_swiglu_backward, gate_nf, up_nf, h_gate_nr, h_up_nr, B_gate, B_up, d_out, d_gate,
        d_up,
    )  # fmt: skip
    return d_gate, d_up


def _over_ffn(kernel: Any, gate_nf: Tensor, *tensors: Tensor) -> None:
    (tokens, width), count = gate_nf.shape, tensors[1].shape[1]
    tile = _token_tile(tokens)
    with torch.cuda.device_of(gate_nf):
        kernel[triton.cdiv(tokens, tile), triton.cdiv(width, 64)](
            gate_nf, *tensors, tokens, count, width, BN=tile, BR=32, BF=64, **_options()
        )


def _options() -> dict[str, bool]:
    """Of every launch. What Triton does by itself about fused sums changes with its version."""
    return {"WIDEN": interpreted(), "enable_fp_fusion": True}


def _token_tile(tokens: int) -> int:
    return 16 if tokens <= 16 else 64
