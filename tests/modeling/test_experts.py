"""Stacked experts: PEFT is the judge of one expert, a plain loop of many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support.devices import DEVICE, on_device
from support.pretended import Pretended
from support.tiny_models import make_base, make_inputs
from torch import Tensor, nn

from cmoe.experiments.benchmarks.growing import forced
from cmoe.modeling import experts
from cmoe.modeling.experts import ExpertLinear, ExpertStack, Gates, LayerCall
from cmoe.modeling.growing import GrowingVLM

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 4e-2}


@pytest.fixture(params=["concatenated", "grouped"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways of computing, whatever the sizes of a test would choose."""
    with forced(request.param):
        yield str(request.param)


def loop(
    linear: nn.Linear, As: list[Tensor], Bs: list[Tensor], scales: list[float], u: Tensor, g: Gates
) -> Tensor:
    """P u + sum_e s_e g_e B_e A_e u, token by token and slot by slot."""
    rows = []
    for t in range(len(u)):
        y = linear(u[t])
        for weight, e in zip(g.weights[t], g.experts[t].tolist(), strict=True):
            y = y + (scales[e] * weight).to(u.dtype) * (Bs[e] @ (As[e] @ u[t]))
        rows.append(y)
    return torch.stack(rows)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Frozen experts of any ranks, then experts being learned, which share one."""
    aligned = draw(st.booleans())
    ranks = st.sampled_from([8] if aligned else [1, 3, 8])
    frozen = draw(st.lists(ranks, max_size=5))
    learning = [draw(ranks)] * draw(st.integers(0 if frozen else 1, 3))
    count = len(frozen) + len(learning)
    return {
        "frozen": frozen,
        "learning": learning,
        "scales": draw(st.lists(st.sampled_from([0.5, 1.25, 2.0]), min_size=count, max_size=count)),
        "k": draw(st.integers(1, count)),
        "tokens": draw(st.integers(1, 9)),
        "width_in": 4 * draw(st.integers(1, 4)),
        "width_out": 4 * draw(st.integers(1, 4)),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
        "way": draw(st.sampled_from(["concatenated", "grouped"])),
        "seed": draw(st.integers(0, 2**16)),
    }


@settings(max_examples=200, deadline=None)
@given(case=cases())
@on_device
def test_the_stacked_computation_equals_the_loop(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    dtype, scales, n = case["dtype"], case["scales"], len(case["frozen"])
    if case["way"] == "grouped" and dtype is torch.float64:
        dtype = torch.float32  # grouped_mm has no float64
    ranks = case["frozen"] + case["learning"]
    As = [torch.randn(r, case["width_in"]).to(dtype) for r in ranks]
    Bs = [torch.randn(case["width_out"], r).to(dtype) for r in ranks]
    weights = torch.rand(case["tokens"], case["k"])
    weights[0] = 0  # a token of a sample without a task
    chosen = [torch.randperm(len(ranks))[: case["k"]] for _ in range(case["tokens"])]
    gates = Gates(weights, torch.stack(chosen), len(ranks))

    call = LayerCall()
    widths = (case["width_in"], case["width_out"])
    linear = nn.Linear(*widths).to(dtype)
    module = ExpertLinear(linear, call)
    with forced(case["way"]):
        if case["frozen"]:
            module.freeze([A[None] for A in As[:n]], [B[None] for B in Bs[:n]])
            call.frozen = ExpertStack(ranks[:n], scales[:n], 0, widths, DEVICE).dispatch(
                gates, dtype
            )
        if case["learning"]:
            module.learn(torch.stack(As[n:]), torch.stack(Bs[n:]))
            call.learning = ExpertStack(ranks[n:], scales[n:], n, widths, DEVICE).dispatch(
                gates, dtype
            )
    u = torch.randn(case["tokens"], case["width_in"]).to(dtype)
    wanted, got = loop(linear, As, Bs, scales, u, gates), module(u)
    bound = TOLERANCE[dtype] * (1 + wanted.abs().max().item())
    assert (got - wanted).abs().max().item() <= bound
    assert torch.equal(got[0], linear(u)[0])


@settings(max_examples=50, deadline=None)
@given(tokens=st.integers(1, 9), slots=st.integers(1, 4), seed=st.integers(0, 999))
@on_device
def test_slots_are_summed_in_a_fixed_order_as_index_add_sums_them(
    tokens: int, slots: int, seed: int
) -> None:
    torch.manual_seed(seed)
    order = torch.randperm(tokens * slots)
    rows = torch.randn(tokens * slots, 3)
    wanted = torch.zeros(tokens, 3).index_add(0, order // slots, rows)
    torch.testing.assert_close(experts.slots_summed(rows, order, slots), wanted)


@on_device
def test_both_ways_have_the_loops_gradients(way: str) -> None:
    torch.manual_seed(0)
    As, Bs = torch.randn(5, 8, 12), torch.randn(5, 16, 8)
    u = torch.randn(7, 12, requires_grad=True)
    weights = torch.rand(7, 2, requires_grad=True)
    gates = Gates(weights, torch.stack([torch.randperm(5)[:2] for _ in range(7)]), 5)
    call, linear = LayerCall(), nn.Linear(12, 16)
    module = ExpertLinear(linear, call)
    module.learn(As, Bs)
    call.learning = ExpertStack([8] * 5, [2.0] * 5, 0, (12, 16), DEVICE).dispatch(
        gates, torch.float32
    )
    assert type(call.learning).__name__ == way.capitalize()
    module(u).square().sum().backward()
    assert module.A is not None
    assert module.B is not None
    got = [u.grad, weights.grad, module.A.grad, module.B.grad]

    u.grad = weights.grad = None
    As, Bs = As.requires_grad_(), Bs.requires_grad_()
    loop(linear, list(As), list(Bs), [2.0] * 5, u, gates).square().sum().backward()
    assert As.grad is not None
    assert Bs.grad is not None
    wanted = [u.grad, weights.grad, As.grad.flatten(0, 1), Bs.grad.transpose(1, 2).flatten(0, 1)]
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_one_expert_with_gate_one_is_pefts_lora(family: str) -> None:
    rank, alpha = 4, 8.0
    model = GrowingVLM(make_base(family))
    torch.manual_seed(1)
    model.grow("only", dict.fromkeys(range(4), 1), rank=rank, lora_alpha=alpha, seed=0)
    for ffn in model.ffns:
        for linear in ffn.maps.values():
            assert linear.B is not None
            nn.init.normal_(linear.B, std=0.1)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=r".*layers\.\d+\.mlp\.\w+_proj")
    peft = get_peft_model(make_base(family), config)
    adapted = {
        tuple(name.split(".layers.")[1].split(".")): module
        for name, module in peft.named_modules()
        if hasattr(module, "lora_A") and "language_model" in name
    }
    assert len(adapted) == 12
    pairs = []
    for (layer, _, leaf), module in adapted.items():
        linear = model.ffns[int(layer)].maps[leaf]
        A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
        with torch.no_grad():
            A.copy_(linear.A)
            B.copy_(linear.B.T)
        pairs.append((linear, A, B))

    inputs = make_inputs(family)
    inputs["labels"] = inputs["input_ids"]
    mine, theirs = model(inputs, "only"), peft(**inputs)
    torch.testing.assert_close(mine.logits, theirs.logits, rtol=1e-5, atol=1e-5)
    mine.loss.backward()
    theirs.loss.backward()
    for linear, A, B in pairs:
        torch.testing.assert_close(linear.A.grad, A.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(linear.B.grad, B.grad.T, rtol=1e-4, atol=1e-6)


@on_device
def test_the_way_is_chosen_by_size() -> None:
    def way(
        tokens: int, experts_: int, k: int, rank: int, dtype: torch.dtype, width: int = 16
    ) -> str:
        chosen = torch.stack([torch.randperm(experts_)[:k] for _ in range(tokens)])
        stack = ExpertStack([rank] * experts_, [1.0] * experts_, 0, (16, width), DEVICE)
        dispatch = stack.dispatch(Gates(torch.rand(tokens, k), chosen, experts_), dtype)
        return type(dispatch).__name__

    assert way(256, 64, 2, 16, torch.float32) == (
        "Grouped" if DEVICE.type == "cpu" else "Concatenated"
    )
    assert way(256, 2, 2, 16, torch.float32) == "Concatenated"
    assert way(1, 64, 2, 16, torch.float32) == "Concatenated"
    assert way(256, 64, 2, 3, torch.float32) == "Concatenated", "rank 3 isn't aligned"
    assert way(256, 64, 2, 4, torch.bfloat16) == "Concatenated", "nor are 4 numbers of 2 bytes"
    assert way(256, 64, 2, 8, torch.bfloat16, width=12) == "Concatenated", "nor is a width of 12"


def test_a_gpu_computes_every_expert_for_every_token_whatever_the_size() -> None:
    """Sorting lost at every size that was measured on one."""
    with Pretended():
        stack = ExpertStack([16] * 64, [1.0] * 64, 0, (16, 16), torch.device("cuda"))
        chosen = torch.randint(64, (256, 1), device="cuda")
        gates = Gates(torch.rand(256, 1, device="cuda"), chosen, 64)
        assert type(stack.dispatch(gates, torch.float32)).__name__ == "Concatenated"
