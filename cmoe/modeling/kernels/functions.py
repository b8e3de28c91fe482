"""The kernels with their gradients; products that cuBLAS does as well are left to torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from cmoe.modeling.kernels import reference
from cmoe.modeling.kernels.reference import Choice, Routed, Rows


def route(hidden_nd: Tensor, weight_ed: Tensor, choice: Choice) -> Routed:
    """As `reference.route`, which itself routes where a kernel doesn't take so many experts."""
    from cmoe.modeling.kernels.launch import MAX_EXPERTS

    if len(weight_ed) > MAX_EXPERTS:
        return reference.route(hidden_nd, weight_ed, choice)
    return Routed(*_Route.apply(hidden_nd.contiguous(), weight_ed.contiguous(), choice))


def shrink(u_ni: Tensor, As: tuple[Tensor, ...], gates_ne: Tensor, rows: Rows) -> list[Tensor]:
    """As `reference.shrink`, for one map or two."""
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (u_ni, gates_ne, *As))
    return list(_Shrink.apply(u_ni.contiguous(), gates_ne.contiguous(), rows, save, *As))


def expand_swiglu(
    gate_nf: Tensor,
    up_nf: Tensor,
    h_gate_nr: Tensor,
    h_up_nr: Tensor,
    B_gate: Tensor,
    B_up: Tensor,
    learned: int,
) -> Tensor:
    """As `reference.expand_swiglu`; rows before `learned` are frozen."""
    out: Tensor = _ExpandSwiGLU.apply(gate_nf, up_nf, h_gate_nr, h_up_nr, B_gate, B_up, learned)
    return out


class _Route(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, choice: Choice) -> tuple[Tensor, ...]:
        from cmoe.modeling.kernels import launch

        gates, probs, chosen = launch.route(hidden, weight, choice)
        ctx.save_for_backward(hidden, weight, gates, probs, chosen)
        ctx.choice = choice
        ctx.mark_non_differentiable(chosen)
        return gates, probs, chosen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        hidden, weight, gates, probs, chosen = ctx.saved_tensors
        d_gates, d_probs, _ = grads
        if ctx.choice.always is not None:
            d_gates = d_gates * (chosen & ~ctx.choice.always)
        elif ctx.choice.renormalized:
            whole = (probs * chosen).sum(-1, keepdim=True)
            d_gates = (d_gates - (d_gates * gates).sum(-1, keepdim=True)) * chosen / whole
        else:
            d_gates = d_gates * chosen
        d_probs = d_probs + d_gates
        d_logits = probs * (d_probs - (d_probs * probs).sum(-1, keepdim=True))
        d_logits = d_logits.to(hidden.dtype)
        d_hidden = d_logits @ weight if ctx.needs_input_grad[0] else None
        d_weight = d_logits.T @ hidden if ctx.needs_input_grad[1] else None
        return d_hidden, d_weight, None


class _Shrink(Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, gates: Tensor, rows: Rows, save: bool, *As: Tensor
    ) -> tuple[Tensor, ...]:
        from cmoe.modeling.kernels import launch

        h, low = launch.shrink(u, As, gates, rows, save=save)
        ctx.save_for_backward(u, gates, *As, *low)
        ctx.rows = rows
        return tuple(h)

    @staticmethod
    def backward(ctx: Any, *d_h: Tensor) -> tuple[Any, ...]:
        u, gates, *pairs = ctx.saved_tensors
        As, low = pairs[: len(d_h)], pairs[len(d_h) :]
        rows: Rows = ctx.rows
        needs_u, needs_gates, _, _, *needs_A = ctx.needs_input_grad
        gates_nr = (gates.index_select(1, rows.experts) * rows.scales).to(u.dtype)
        d_low = [d * gates_nr for d in d_h]
        d_u = d_gates = None
        if needs_u:
            d_u = d_low[0] @ As[0]
            for d, A in zip(d_low[1:], As[1:], strict=True):
                d_u = d_u.addmm_(d, A)
        if needs_gates:
            by_row = sum(d.float() * one.float() for d, one in zip(d_h, low, strict=True))
            # A product: index_add_ adds in no fixed order on a GPU.
            d_gates = (by_row * rows.scales) @ F.one_hot(rows.experts, gates.shape[1]).float()
        d_As = [
            _of_learned(d, u, rows.learned) if needed else None
            for d, needed in zip(d_low, needs_A, strict=True)
        ]
        return d_u, d_gates, None, None, *d_As


class _ExpandSwiGLU(Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        h_gate: Tensor,
        h_up: Tensor,
        B_gate: Tensor,
        B_up: Tensor,
        learned: int,
    ) -> Tensor:
        from cmoe.modeling.kernels import launch

        ctx.save_for_backward(gate, up, h_gate, h_up, B_gate, B_up)
        ctx.learned = learned
        return launch.expand_swiglu(gate, up, h_gate, h_up, B_gate, B_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        from cmoe.modeling.kernels import launch

        gate, up, h_gate, h_up, B_gate, B_up = ctx.saved_tensors
        d_gate, d_up = launch.expand_swiglu_backward(
            gate, up, h_gate, h_up, B_gate, B_up, grads[0].contiguous()
        )
        needs = ctx.needs_input_grad
        d_h = [F.linear(d, B) for d, B in ((d_gate, B_gate), (d_up, B_up))]
        d_B = [
            _of_learned(h, d, ctx.learned) if needed else None
            for h, d, needed in ((h_gate, d_gate, needs[4]), (h_up, d_up, needs[5]))
        ]
        return d_gate, d_up, *d_h, *d_B, None


def _of_learned(x_nr: Tensor, y_no: Tensor, learned: int) -> Tensor:
    """`x^T y` [R, o], where rows before `learned` are frozen: nobody asks for their gradient."""
    out = y_no.new_zeros(x_nr.shape[1], y_no.shape[1])
    out[learned:] = x_nr[:, learned:].T @ y_no
    return out
