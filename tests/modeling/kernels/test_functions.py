"""Each kernel against its formula in plain torch, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.devices import on_device
from torch import Tensor

from cmoe.modeling.kernels import functions, reference
from cmoe.modeling.kernels.reference import Choice, Rows

# In parts of the largest number; bf16 keeps 8 bits.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
SEEDS = st.integers(0, 2**16)
few = settings(max_examples=12, deadline=None, phases=[Phase.generate])  # shrinking is slow


def assert_near(got: Sequence[Tensor], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:
    for index, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        assert mine.dtype == theirs.dtype, index
        bound = TOLERANCE[dtype] * (1e-3 + theirs.abs().max().item())
        assert (mine.float() - theirs.float()).abs().max().item() <= bound, index


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


@few
@given(
    tokens=st.integers(1, 35),
    width=st.integers(1, 90),
    experts=st.integers(1, 19),
    top_k=st.integers(1, 4),
    form=st.sampled_from(["plain", "renormalized", "always"]),
    dtype=DTYPES,
    seed=SEEDS,
)
@on_device
def test_the_router_is_the_formulas(
    tokens: int, width: int, experts: int, top_k: int, form: str, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    always = torch.rand(experts) < 0.3 if form == "always" else None
    others = experts if always is None else int((~always).sum())
    likeliest = min(top_k, others)
    given_ = Choice(likeliest, form == "renormalized" and likeliest > 1, always)
    inputs = torch.randn(tokens, width).to(dtype), (torch.randn(experts, width) / 3).to(dtype)
    mine, theirs = leaves(*inputs), leaves(*inputs)
    got, wanted = functions.route(*mine, given_), reference.route(*theirs, given_)
    # The order of sums decides between experts of the same probability.
    ranked = wanted.probs if always is None else wanted.probs.masked_fill(always, -1.0)
    ranked = ranked.sort(dim=1, descending=True).values
    clear = torch.ones(tokens, dtype=torch.bool)
    if 0 < likeliest < others:
        clear = ranked[:, likeliest - 1] - ranked[:, likeliest] > 1e-5
    assert torch.equal(got.chosen[clear], wanted.chosen[clear])
    assert_near([got.gates[clear], got.probs], [wanted.gates[clear], wanted.probs], torch.float32)
    to_gates, to_probs = torch.randn(tokens, experts), torch.randn(tokens, experts)
    to_gates = to_gates * clear[:, None]
    for routed in (got, wanted):
        ((routed.gates * to_gates).sum() + (routed.probs * to_probs).sum()).backward()
    assert_near([t.grad for t in mine], [t.grad for t in theirs], dtype)  # type: ignore[misc]


@on_device
def test_a_layer_of_more_experts_than_a_kernel_takes_is_routed_all_the_same() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 8), torch.randn(300, 8)
    got = functions.route(hidden, weight, Choice(2, renormalized=True))
    wanted = (hidden @ weight.T).softmax(-1).topk(2)
    share = wanted.values / wanted.values.sum(-1, keepdim=True)
    torch.testing.assert_close(got.gates.gather(1, wanted.indices), share)


@st.composite
def ranks(draw: st.DrawFn) -> dict[str, Any]:
    """Experts of any ranks, of which the last may be learned."""
    sizes = draw(st.lists(st.sampled_from([1, 3, 8, 20]), min_size=1, max_size=4))
    return {"ranks": sizes, "frozen": draw(st.integers(0, len(sizes)))}


def rows_of(ranks: list[int], frozen: int) -> Rows:
    experts = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
    return Rows(experts, torch.rand(len(ranks))[experts] + 0.5, sum(ranks[:frozen]))


@few
@given(
    stack=ranks(),
    tokens=st.integers(1, 70),
    width=st.integers(1, 90),
    maps=st.integers(1, 2),
    dtype=DTYPES,
    seed=SEEDS,
)
@on_device
def test_shrinking_is_the_formulas(
    stack: dict[str, Any], tokens: int, width: int, maps: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    rows, experts = rows_of(**stack), len(stack["ranks"])
    gates = torch.rand(tokens, experts) * (torch.rand(tokens, experts) < 0.5)
    gates[0] = 0  # a token that no expert works on
    pairs = [(torch.randn(len(rows.experts), width) / 3).to(dtype) for _ in range(maps)]
    inputs = torch.randn(tokens, width).to(dtype), gates, *pairs
    (u, g, *As), (u2, g2, *As2) = leaves(*inputs), leaves(*inputs)
    got = functions.shrink(u, tuple(As), g, rows)
    wanted = reference.shrink(u2, tuple(As2), g2, rows)
    assert_near(got, wanted, dtype)
    assert all(torch.equal(h[0], torch.zeros_like(h[0])) for h in got)
    to = [torch.randn(h.shape).to(dtype) for h in got]
    torch.autograd.backward(got, to)
    torch.autograd.backward(wanted, to)
    for A, A2 in zip(As, As2, strict=True):
        assert A.grad is not None
        assert A2.grad is not None
        A2.grad[: rows.learned] = 0
    grads, their = ([t.grad for t in each] for each in ((u, g, *As), (u2, g2, *As2)))
    assert_near(grads, their, dtype)  # type: ignore[arg-type]


@few
@given(
    rank=st.integers(1, 40),
    frozen=st.integers(0, 40),
    tokens=st.integers(1, 70),
    width=st.integers(1, 90),
    dtype=DTYPES,
    seed=SEEDS,
)
@on_device
def test_expanding_into_swiglu_is_the_formulas(
    rank: int, frozen: int, tokens: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    frozen = min(frozen, rank)
    shapes = (tokens, width), (tokens, width), (tokens, rank), (tokens, rank)
    inputs = [torch.randn(*s).to(dtype) for s in (*shapes, (rank, width), (rank, width))]
    for h in inputs[2:4]:
        h[0] = 0  # a token that no expert works on
    mine, theirs = leaves(*inputs), leaves(*inputs)
    got = functions.expand_swiglu(*mine, frozen)
    wanted = reference.expand_swiglu(*theirs)
    assert_near([got], [wanted], dtype)
    base = torch.nn.functional.silu(inputs[0][0]) * inputs[1][0]
    assert_near([got[0]], [base], torch.float32 if dtype is torch.float32 else dtype)
    to = torch.randn(got.shape).to(dtype)
    got.backward(to)
    wanted.backward(to)
    for B in theirs[4:]:
        assert B.grad is not None
        B.grad[:frozen] = 0
    assert_near([t.grad for t in mine], [t.grad for t in theirs], dtype)  # type: ignore[misc]


@on_device
def test_frozen_experts_get_no_gradient_and_what_reads_them_does() -> None:
    torch.manual_seed(0)
    rows, A = rows_of([3, 2], 2), torch.randn(5, 8)
    u = torch.randn(5, 8).requires_grad_()
    gates = torch.rand(5, 2)
    (h,) = functions.shrink(u, (A,), gates, rows)
    h.sum().backward()
    gates_nr = gates[:, rows.experts] * rows.scales
    torch.testing.assert_close(u.grad, gates_nr @ A)
    assert A.grad is None
    with torch.no_grad():
        (again,) = functions.shrink(u, (A,), gates, rows)
    assert torch.equal(again, h)
    assert again.grad_fn is None
