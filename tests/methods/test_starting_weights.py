"""What new experts start from: copies of the most used ones and of probes, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.probings import gains
from support.tiny_models import LAYERS, WIDTH, make_base, make_inputs

from cmoe.methods.probe import Decision, Gain, Probing, starting_weights
from cmoe.methods.settings import ProbeConfig
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.primitive import Primitive

TASK = {0: 1, 1: 2, 2: 1}  # older experts, of rank 4; layer 3 has none


@pytest.fixture(scope="module")
def probed() -> tuple[GrowingVLM, Primitive]:
    """A model with older experts of ranks 4 and 2, and the trained probes: two a layer, rank 4."""
    model = GrowingVLM(make_base())
    for seed, (task, experts, rank) in enumerate(
        [("old", TASK, 4), ("thin", {1: 1}, 2), ("probed", dict.fromkeys(range(LAYERS), 2), 4)]
    ):
        parameters = model.grow(task, experts, rank=rank, lora_alpha=8, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in parameters:
                p.copy_(torch.randn(p.shape, generator=generator))
        if task != "probed":
            model.commit({})
    probes = model.learning()
    model.discard()
    return model, probes


def start(
    probed: tuple[GrowingVLM, Primitive],
    gates: Sequence[Sequence[float]],
    experts: dict[int, int],
    init: Any,
    seed: int = 0,
    rank: int | None = None,
) -> tuple[dict[str, torch.Tensor], dict[int, list[int | None]]]:
    model, probes = probed
    rank = rank or probes.rank
    rows = tuple(tuple(row) for row in gates)
    older = tuple(len(f.frozen) for f in model.ffns)
    # Where the largest gates fall is none of its business: mean gates tell what is used.
    largest = tuple(row[::-1] for row in rows)
    probing = Probing(older, largest, rows, gains(*[0.0] * LAYERS), Gain(0.0, 0.0), 1.0)
    return starting_weights(
        model, probes, probing, Decision(experts, 0.0, ()), ProbeConfig(init=init), rank, seed
    )


# Per layer: older experts first (in layer 1 the third has another rank), then two probes.
GATES = ((0.6, 0.3, 0.1), (0.1, 0.2, 0.5, 0.05, 0.15), (0.2, 0.3, 0.5), (0.9, 0.1))


def pair(probed: tuple[GrowingVLM, Primitive], layer: int, source: int, key: str) -> torch.Tensor:
    """One map's `A` or `B` of an expert, an older one by its place or a probe behind them."""
    model, probes = probed
    older = len(model.ffns[layer].frozen)
    if source < older:
        return model.ffns[layer].expert(source)[key][0].cpu()
    return probes.experts[key][source - older]


@pytest.mark.parametrize(
    ("init", "experts", "sources"),
    [
        ("used", dict.fromkeys(range(LAYERS), 1), {0: [0], 1: [1], 2: [2], 3: [0]}),
        ("used", {0: 2, 1: 3, 3: 2}, {0: [0, 1], 1: [1, 4, 0], 3: [0, 1]}),
        ("probe", dict.fromkeys(range(LAYERS), 1), {0: [1], 1: [4], 2: [2], 3: [0]}),
        ("probe", {1: 3, 2: 2}, {1: [4, 3, None], 2: [2, 1]}),
        ("used", {0: 4, 1: 5}, {0: [0, 1, 2, None], 1: [1, 4, 0, 3, None]}),
        ("fresh", {0: 1, 3: 2}, {0: [None], 3: [None, None]}),
        ("used", {}, {}),
    ],
)
def test_new_experts_copy_the_right_ones_with_their_router_rows(
    probed: tuple[GrowingVLM, Primitive],
    init: str,
    experts: dict[int, int],
    sources: dict[int, list[int | None]],
) -> None:
    model, probes = probed
    weights, found = start(probed, GATES, experts, init)
    assert found == sources
    for layer, ffn in enumerate(model.ffns):
        chosen, router = sources.get(layer, []), weights[f"layers.{layer}"]
        older = len(ffn.frozen)
        assert router.shape == (older + len(chosen), WIDTH)
        assert torch.equal(router[:older], probes.routers[f"layers.{layer}"][:older])
        for place, source in enumerate(chosen):
            row = router[older + place]
            if source is None:
                assert not (row == probes.routers[f"layers.{layer}"]).all(1).any()
            else:
                assert torch.equal(row, probes.routers[f"layers.{layer}"][source])
            for name in ffn.maps:
                key = f"layers.{layer}.{name}"
                if source is None:
                    assert not weights[f"{key}.B"][place].any(), "a fresh expert changes nothing"
                    assert weights[f"{key}.A"][place].any()
                else:
                    for suffix in ("A", "B"):
                        copy = weights[f"{key}.{suffix}"][place].cpu()
                        assert torch.equal(copy, pair(probed, layer, source, f"{key}.{suffix}"))
    names = {key.split(".")[1] for key in weights if key.count(".") > 1}
    assert names == {str(layer) for layer, count in experts.items() if count}


def test_experts_of_another_rank_start_fresh_with_the_probes_router_rows(
    probed: tuple[GrowingVLM, Primitive],
) -> None:
    _, probes = probed
    weights, sources = start(probed, GATES, {0: 2, 3: 1}, "probe", rank=probes.rank + 3)
    assert sources == {0: [None, None], 3: [None]}
    shapes = {n: t.shape for n, t in weights.items() if n.endswith(".A")}
    assert shapes
    assert all(shape[1] == probes.rank + 3 for shape in shapes.values())
    assert all(not t.any() for n, t in weights.items() if n.endswith(".B"))


def test_a_model_grows_from_what_it_is_given(probed: tuple[GrowingVLM, Primitive]) -> None:
    model, _ = probed
    weights, _ = start(probed, GATES, {0: 2, 1: 5, 3: 1}, "used")
    before = model(make_inputs(), "thin").logits
    model.grow("next", {0: 2, 1: 5, 3: 1}, rank=4, lora_alpha=8, seed=9, init=weights)
    grown = model.learning()
    model.discard()
    for name, tensor in (grown.experts | grown.routers).items():
        assert torch.equal(tensor, weights[name]), name
    assert (grown.experts | grown.routers).keys() == weights.keys()
    assert torch.equal(model(make_inputs(), "thin").logits, before)


def test_fresh_experts_are_the_seeds_and_equal_gates_take_the_first(
    probed: tuple[GrowingVLM, Primitive],
) -> None:
    once, again, other = (
        start(probed, GATES, {0: 1, 2: 2}, "fresh", seed)[0] for seed in (3, 3, 4)
    )
    key = next(name for name in once if name.endswith(".A"))
    assert all(torch.equal(t, again[name]) for name, t in once.items())
    assert not torch.equal(once[key], other[key])
    even = [[1 / len(row)] * len(row) for row in GATES]
    _, sources = start(probed, even, dict.fromkeys(range(LAYERS), 1), "used")
    assert sources == {0: [0], 1: [0], 2: [0], 3: [0]}


def test_starting_weights_are_copies(probed: tuple[GrowingVLM, Primitive]) -> None:
    model, _ = probed
    weights, _ = start(probed, GATES, {0: 1}, "used")
    before = model.ffns[0].expert(0)
    kept = {name: t.clone() for name, t in before.items()}
    for tensor in weights.values():
        tensor.zero_()
    assert all(torch.equal(model.ffns[0].expert(0)[name], t) for name, t in kept.items())
