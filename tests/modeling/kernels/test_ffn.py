"""A growing FFN by kernels: a plain loop over its experts is the judge, torch's way of a model."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.devices import DEVICE, on_device
from support.grown import STREAM, grown, learn, randomise
from support.tiny_models import make_base, make_inputs
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

from cmoe.modeling.base import Site
from cmoe.modeling.ffn import GrowingFFN
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.growth import Context, Growth
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE, Routing
from cmoe.modeling.settings import GateForm

FORMS: Sequence[GateForm] = ("renormalized", "softmax", "residual")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}


class Layer:
    """An FFN to which tasks of one layer are added, and its context."""

    def __init__(self, width: int, inner: int, top_k: int, form: GateForm, dtype: Any) -> None:
        config: Any = SimpleNamespace(
            hidden_size=width, intermediate_size=inner, mlp_bias=False, hidden_act="silu"
        )
        layer = nn.Module()
        layer.mlp = LlamaMLP(config).to(DEVICE, dtype)
        layer.requires_grad_(False)
        self.context = Context()
        maps = ("gate_proj", "up_proj", "down_proj")
        self.ffn = GrowingFFN(Site(layer, "mlp", maps), 0, top_k, form, self.context)
        self.ffn.use_kernels("triton")
        self.tasks = 0

    def learn(self, count: int, rank: int) -> None:
        self.growth = Growth({0: count}, rank, 1.5, torch.Generator().manual_seed(self.tasks))
        self.ffn.learn(self.growth)
        with torch.no_grad():
            for p in self.ffn.parameters():
                if p.requires_grad:
                    p.copy_(0.3 * torch.randn(p.shape))

    def commit(self) -> None:
        experts, routers = self.ffn.learned()
        rank = self.growth.rank
        task = Primitive(f"task{self.tasks}", rank, 1.5 * rank, experts, routers, {})
        self.ffn.discard()
        self.ffn.freeze([task], [BASE])
        self.tasks += 1

    def __call__(self, hidden: Tensor, task: int) -> Tensor:
        with self.context.using(self.routing(hidden, task)):
            out: Tensor = self.ffn(hidden)
        return out

    def routing(self, hidden: Tensor, task: int) -> Routing:
        return Routing.of((task,) * len(hidden), hidden.device)

    def looped(self, hidden: Tensor, task: int) -> Tensor:
        """P u + sum_e s_e g_e B_e A_e u in each map, expert by expert."""
        gates = self.ffn.routers.dense(hidden, self.routing(hidden, task))
        frozen, learning = self.ffn.frozen, self.ffn.learning

        def linear(name: str, u: Tensor) -> Tensor:
            mine = self.ffn.maps[name]
            y = mine.linear(u)
            for e in range(gates.shape[1]):
                if e < len(frozen):
                    A, B = mine.frozen_A[frozen.rows(e)], mine.frozen_B[frozen.rows(e)]
                    scale = frozen.scales[e]
                else:
                    assert learning is not None
                    assert mine.A is not None
                    assert mine.B is not None
                    rows = learning.rows(e - len(frozen))
                    A, B, scale = mine.A[rows], mine.B[rows], learning.scales[e - len(frozen)]
                y = y + (scale * gates[:, e, None] * (u @ A.T)).to(u.dtype) @ B
            return y

        u = hidden.flatten(0, 1)
        inner = F.silu(linear("gate_proj", u)) * linear("up_proj", u)
        return linear("down_proj", inner).view_as(hidden)


@settings(max_examples=10, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
@given(
    older=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 8])), max_size=2),
    learned=st.tuples(st.integers(1, 3), st.sampled_from([2, 5])),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(3, 40), st.integers(3, 70)),
    top_k=st.integers(1, 4),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
@on_device
def test_the_ffn_is_the_loop_over_its_experts(
    older: list[tuple[int, int]],
    learned: tuple[int, int],
    shape: tuple[int, int, int, int],
    top_k: int,
    form: GateForm,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    batch, length, width, inner = shape
    layer = Layer(width, inner, top_k, form, dtype)
    for count, rank in older:
        layer.learn(count, rank)
        layer.commit()
    layer.learn(*learned)
    trained = [p for p in layer.ffn.parameters() if p.requires_grad]
    hidden = torch.randn(batch, length, width).to(dtype).requires_grad_()
    to = torch.randn(hidden.shape).to(dtype)

    def passed(way: Any) -> list[Tensor]:
        out = way(hidden, layer.tasks)
        return [out, *torch.autograd.grad(out, [hidden, *trained], to)]

    for index, (mine, theirs) in enumerate(zip(passed(layer), passed(layer.looped), strict=True)):
        bound = TOLERANCE[dtype] * (1e-2 + theirs.abs().max().item())
        assert (mine - theirs).abs().max().item() <= bound, index


@pytest.mark.parametrize("form", FORMS)
@on_device
def test_experts_of_later_tasks_leave_every_bit_of_an_earlier_one(form: GateForm) -> None:
    torch.manual_seed(1)
    layer = Layer(24, 40, 2, form, torch.float32)
    layer.learn(2, 3)
    hidden = torch.randn(2, 9, 24)
    learning = layer(hidden, 0)
    layer.commit()
    alone = layer(hidden, 0)
    assert torch.equal(alone, learning)
    for count, rank in ((1, 8), (20, 5)):
        layer.learn(count, rank)
        assert torch.equal(layer(hidden, 0), alone)
        layer.commit()
        assert torch.equal(layer(hidden, 0), alone)
    assert not torch.equal(layer(hidden, 2), alone)


def by(kernels: Any, gates: GateForm) -> GrowingVLM:
    """A model of four tasks that is about to learn a fifth."""
    model = grown(gates=gates)
    model.use_kernels(kernels)
    model.grow("fifth", {0: 1, 3: 2}, rank=4, lora_alpha=8, seed=7)
    randomise(model, 7)
    return model


@pytest.mark.parametrize("gates", FORMS)
@on_device
def test_a_training_step_by_kernels_is_torchs(gates: GateForm) -> None:
    inputs = make_inputs()
    inputs["labels"] = inputs["input_ids"]
    found = []
    for kernels in ("triton", "torch"):
        model = by(kernels, gates)
        if kernels == "triton":
            model.enable_gradient_checkpointing()
        out = model(inputs, "fifth", record=True)
        (out.loss + 0.1 * out.balance_loss).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((out, grads))
    (mine, my_grads), (theirs, grads) = found
    torch.testing.assert_close(mine.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine.balance_loss, theirs.balance_loss)
    assert [u.layer for u in mine.usage] == [u.layer for u in theirs.usage]
    for use, wanted in zip(mine.usage, theirs.usage, strict=True):
        torch.testing.assert_close(tuple(use), tuple(wanted), rtol=1e-4, atol=1e-4)
    assert my_grads.keys() == grads.keys()
    for name, grad in grads.items():
        close = {"rtol": 1e-3, "atol": 1e-4 * (grad.abs().max().item() + 1e-3)}
        torch.testing.assert_close(my_grads[name], grad, **close, msg=lambda m, n=name: f"{n}: {m}")


@on_device
def test_samples_of_several_tasks_get_each_its_own_and_the_base_keeps_its_bits() -> None:
    model = by("triton", "renormalized")
    inputs = make_inputs(batch=3)
    # In bits the answer of a batch without tasks, which runs no kernel.
    mixed = model(inputs, ["fourth", BASE, "first"]).logits
    assert torch.equal(mixed[1], model(inputs, BASE).logits[1])
    tasks = ["fourth", "fourth", "fifth"]
    mine, theirs = (by(kernels, "renormalized")(inputs, tasks) for kernels in ("triton", "torch"))
    torch.testing.assert_close(mine.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    alone = by("triton", "renormalized")(inputs, "fifth")
    torch.testing.assert_close(mine.logits[2], alone.logits[2], rtol=1e-4, atol=1e-4)


@on_device
def test_a_models_later_tasks_leave_every_bit_of_its_earlier_ones() -> None:
    model, inputs = GrowingVLM(make_base()), make_inputs()
    model.use_kernels("triton")
    seen: dict[str, Tensor] = {}
    for task in STREAM:
        learn(model, task)
        for earlier, logits in seen.items():
            assert torch.equal(model(inputs, earlier).logits, logits), (task, earlier)
        seen[task] = model(inputs, task).logits
