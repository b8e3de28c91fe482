"""The experts at a stated capacity do what the growing model's do, whatever a batch is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.grown import STREAM, learn
from support.tiny_models import make_base
from torch import Tensor

from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE, Routing
from cmoe.serving.engines.vllm.experts import (
    CapacityError,
    Pairs,
    RoutedAdapters,
    RoutedExperts,
    pairs_of,
)
from cmoe.serving.engines.vllm.settings import Capacity

CAPACITY = Capacity(tasks=6, experts=12, rows=90, adapter_rows=20)
FFN = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FORMS = ("renormalized", "softmax", "residual")


@lru_cache
def model(
    form: str, top_k: int, attention: int, dtype: torch.dtype
) -> tuple[GrowingVLM, list[Primitive]]:
    made = GrowingVLM(make_base(), top_k=top_k, gates=form, attention=attention)  # type: ignore[arg-type]
    log = [learn(made, task) for task in STREAM]
    return made.to(dtype), log


def foundation(primitive: Primitive) -> int:
    return BASE if primitive.builds_on is None else [*STREAM].index(primitive.builds_on)


def ffn_at_capacity(
    grown: GrowingVLM, log: Sequence[Primitive], layer: int
) -> Mapping[str, Pairs | RoutedExperts]:
    ffn = grown.ffns[layer]
    like = ffn.maps["up_proj"].linear.weight
    parts: dict[str, Pairs | RoutedExperts] = {
        "routed": RoutedExperts(layer, ffn.hidden_size, grown.top_k, grown.gates, CAPACITY, like),
        **{
            name: Pairs(m.linear.in_features, [m.linear.out_features], CAPACITY.rows, like)
            for name, m in ffn.maps.items()
        },
    }
    routed = parts["routed"]
    routed.require_room(log, FFN[0])
    for primitive in log:
        found = pairs_of(primitive, f"layers.{layer}", FFN)
        at = routed.append(
            primitive, foundation(primitive), 0 if found is None else len(found[0][0])
        )
        for name, pair in zip(FFN, found or (), strict=False):
            parts[name].put(at, [pair])
    return parts


@given(
    form=st.sampled_from(FORMS),
    top_k=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layer=st.integers(0, 3),
    tasks=st.lists(st.integers(BASE, 3), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_gates_and_outputs_are_those_of_the_growing_ffn(
    form: str, top_k: int, dtype: torch.dtype, layer: int, tasks: list[int], seed: int
) -> None:
    grown, log = model(form, top_k, 0, dtype)
    ffn, parts = grown.ffns[layer], ffn_at_capacity(grown, log, layer)
    x = torch.randn(len(tasks), 3, ffn.hidden_size, generator=torch.Generator().manual_seed(seed))
    x = x.to(dtype)
    with grown._context.using(Routing.of(tasks, x.device)):
        expected = ffn(x)
    flat = x.flatten(0, 1)
    gates = parts["routed"](flat, torch.tensor(tasks).repeat_interleave(3))

    def mapped(name: str, u: Tensor) -> Tensor:
        pairs = parts[name]
        return pairs.add_to(ffn.maps[name].linear(u), pairs.inner(u), gates)

    act = ffn.ffn.act_fn
    found = mapped("down_proj", act(mapped("gate_proj", flat)) * mapped("up_proj", flat))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found, expected.flatten(0, 1), atol=tolerance, rtol=tolerance)


@given(
    layer=st.integers(0, 3),
    tasks=st.lists(st.integers(BASE, 3), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_adapters_of_merged_maps_are_those_of_the_growing_attention(
    layer: int, tasks: list[int], seed: int
) -> None:
    grown, log = model("residual", 2, 3, torch.float32)
    part = grown.attentions[layer]
    linears = [part.maps[name].linear for name in ATTENTION[:3]]
    adapters = RoutedAdapters(layer, 3, CAPACITY, linears[0].weight)
    adapters.require_room(log, ATTENTION[0])
    outputs = [linear.out_features for linear in linears]
    merged = Pairs(linears[0].in_features, outputs, CAPACITY.adapter_rows, linears[0].weight)
    for primitive in log:
        found = pairs_of(primitive, f"layers.{layer}.attention", ATTENTION[:3])
        at = adapters.append(primitive, foundation(primitive), adds=found is not None)
        if found is not None:
            merged.put(at, found)
    x = torch.randn(
        len(tasks), 3, linears[0].in_features, generator=torch.Generator().manual_seed(seed)
    )
    flat, tasks_n = x.flatten(0, 1), torch.tensor(tasks).repeat_interleave(3)
    none = torch.zeros(len(flat), sum(outputs))
    added = merged.add_to(none, merged.inner(flat), adapters(tasks_n))
    call = part._call
    call.frozen, _ = part._dispatch(Routing.of(tasks, x.device), x)
    try:
        expected = [part.maps[n](x) - part.maps[n].linear(x) for n in ATTENTION[:3]]
    finally:
        call.frozen = None
    torch.testing.assert_close(added, torch.cat(expected, -1).flatten(0, 1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_no_shape_depends_on_data_so_that_one_graph_serves_every_batch() -> None:
    grown, log = model("residual", 2, 0, torch.float32)
    parts = ffn_at_capacity(grown, log, 3)
    x = torch.randn(7, grown.ffns[3].hidden_size)

    def share(x_nd: Tensor, tasks_n: Tensor) -> Tensor:
        up = parts["up_proj"]
        out_no = x_nd.new_zeros(len(x_nd), up.outputs[0])
        return up.add_to(out_no, up.inner(x_nd), parts["routed"](x_nd, tasks_n))

    torch._dynamo.reset()
    graphs = []

    def counted(graph: torch.fx.GraphModule, _: Sequence[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(share, backend=counted, fullgraph=True, dynamic=False)
    for tasks in ([BASE] * 7, [0] * 7, [3, 1, 0, BASE, 2, 3, 1]):
        tasks_n = torch.tensor(tasks)
        torch.testing.assert_close(compiled(x, tasks_n), share(x, tasks_n))
    assert len(graphs) == 1


def test_a_store_that_outgrows_its_engine_is_told_which_setting_to_raise() -> None:
    _, log = model("renormalized", 2, 3, torch.float32)
    like = torch.zeros(1)
    small = RoutedExperts(3, 8, 2, "softmax", Capacity(experts=3), like)
    with pytest.raises(
        CapacityError, match=r"room for 4 experts, .* has 3; raise engine.vllm.capacity.experts"
    ):
        small.require_room(log, "gate_proj")
    few = RoutedExperts(3, 8, 2, "softmax", Capacity(rows=19), like)
    with pytest.raises(
        CapacityError, match=r"room for 20 rows, .* raise engine.vllm.capacity.rows"
    ):
        few.require_room(log, "gate_proj")
    thin = RoutedAdapters(3, 3, Capacity(adapter_rows=5), like)
    with pytest.raises(
        CapacityError, match=r"6 adapter rows, .* has 5; raise engine.vllm.capacity.adap"
    ):
        thin.require_room(log, "q_proj")
