"""Adapters of attention, and tasks that build on others: what works for whom."""

from __future__ import annotations

import pytest
import torch
from support.devices import DEVICE
from support.grown import STREAM, grown, randomise
from support.tiny_models import WIDTH, make_inputs
from torch import Tensor

from cmoe.modeling.routers import BASE

pytestmark = pytest.mark.usefixtures("each_way")


@torch.no_grad()
def test_an_adapter_of_attention_adds_a_scaled_product_to_each_map_of_its_tasks_alone() -> None:
    """`y = P u + s B A u`, for the task and those that build on it: LoRA (arXiv 2106.09685)."""
    model = grown(gates="residual", attention=3)
    (layer, site), u = (2, model.attentions[2]), torch.randn(2, 5, WIDTH).to(DEVICE)
    projection = site.maps["q_proj"]
    taken: list[Tensor] = []
    hook = projection.register_forward_hook(lambda _, __, out: taken.append(out))
    plain = projection.linear.register_forward_hook(lambda _, args, out: taken.append(args[0]))
    assert [site.adapters(t) for t in range(4)] == [(0,), (1,), (1,), (1, 2)]
    for task, ranks in ((BASE, ()), ("first", (8,)), ("third", (4,)), ("fourth", (4, 8))):
        taken.clear()
        model(make_inputs(), task)
        u, y = taken
        wanted = projection.linear(u)
        for adapter, rank in zip(site.adapters(model._indices(task, 1)[0]), ranks, strict=True):
            rows = slice(3 * adapter, 3 * adapter + 3)
            product = u @ projection.frozen_A[rows].T @ projection.frozen_B[rows]
            wanted = wanted + 8 / rank * product  # lora_alpha 8, at the scale of the experts
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)
    hook.remove()
    plain.remove()
    assert layer in STREAM["fourth"]


@torch.no_grad()
def test_a_task_that_adds_nothing_does_what_always_works_for_the_one_it_builds_on() -> None:
    """With a router that prefers none its function is that one's, but for what routers add."""
    # So many experts a token that the fourth task's router adds some of the older ones.
    model, inputs = grown(gates="residual", attention=2, top_k=9), make_inputs()
    rows = {f.router_key: torch.zeros(len(f.frozen), WIDTH) for f in model.ffns}
    model.grow("again", {}, rank=8, lora_alpha=8, seed=0, init=rows, builds_on="fourth")
    again = model(inputs, "again").logits
    assert (again - model(inputs, "fourth").logits).abs().max() > 1e-3
    for ffn in model.ffns:
        ffn.routers.rows.zero_()
    torch.testing.assert_close(again, model(inputs, "fourth").logits)
    assert (again - model(inputs, BASE).logits).abs().max() > 1e-2


@torch.no_grad()
def test_a_layers_attention_is_as_it_was_where_none_of_its_new_experts_work() -> None:
    model, inputs = grown(gates="residual", attention=2), make_inputs()
    model.grow("fifth", {0: 2, 3: 1}, rank=8, lora_alpha=8, seed=0, builds_on="fourth")
    randomise(model, seed=3)
    one = model(inputs, "fifth", kept={0: 0, 3: 0}).logits
    primitive = model.learning()
    model.discard()
    routers = {
        n: rows[: len(model.ffns[int(n[7:])].frozen)] for n, rows in primitive.routers.items()
    }
    model.grow("fifth", {}, rank=8, lora_alpha=8, seed=0, init=routers, builds_on="fourth")
    torch.testing.assert_close(one, model(inputs, "fifth").logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_model_that_has_answered_goes_to_another_device_whole() -> None:
    """Also what it keeps from pass to pass; a device without data stands for any other."""
    model, inputs = grown(gates="residual", attention=2), make_inputs()
    model(inputs, "fourth")
    model.to("meta")
    there = {name: tensor.to("meta") for name, tensor in inputs.items()}
    hidden = torch.empty(3, 4, WIDTH, device="meta")
    routing = model.routing("fourth", 3)
    assert there["input_ids"].device == routing.ids.device
    for ffn, attention in zip(model.ffns, model.attentions, strict=True):
        gates = ffn.routers(hidden, routing)
        assert gates is not None
        assert gates.experts.device.type == "meta"
        frozen, _ = attention._dispatch(routing, hidden)
        assert frozen is not None
        assert frozen.gates_nr.device.type == "meta"
