"""CMoE on a tiny model: it grows where it should, for the reasons it records, and forgets nothing.

What it records is computed a second time here, from the model's own logits. Its loss and what it
costs: test_cmoe_costs.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_cmoe import (
    EXPERTS,
    LOCATOR,
    PROBE,
    SAMPLES,
    Watching,
    answer_loss,
    largest_shares,
    learn,
    make_method,
)
from support.tiny_models import LAYERS, make_base, make_inputs, untouched_base
from torch import Tensor

from cmoe.methods.cmoe import CMoE
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE


def same(a: Primitive, b: Primitive) -> bool:
    return a.decision == b.decision and all(
        ours.keys() == theirs.keys()
        and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        for ours, theirs in zip(a.parts().values(), b.parts().values(), strict=True)
    )


@dataclass(frozen=True)
class Stream:
    """A method that has learned all tasks, and what it was learned with."""

    method: CMoE
    learned: dict[str, tuple[Primitive, Watching]]


@pytest.fixture(scope="module")
def stream() -> Stream:
    method = make_method()
    return Stream(method, {task: learn(method, task) for task in SAMPLES})


# Where it grows


@pytest.mark.parametrize("per_layer", [1, 2])
def test_the_first_task_grows_every_layer_and_probes_none(per_layer: int) -> None:
    method = make_method(replace(EXPERTS, per_layer=per_layer))
    primitive, trainer = learn(method, "one")
    assert list(trainer.seen) == ["train", "usage", "features"]
    assert primitive.decision["experts"] == {str(layer): per_layer for layer in range(LAYERS)}
    assert {len(t) for t in primitive.experts.values()} == {per_layer}
    assert set(primitive.routers) == {f"layers.{layer}" for layer in range(LAYERS)}
    assert trainer.seen["train"] == trainer.seen["features"] == SAMPLES["one"]


def test_without_probing_every_task_grows_every_layer() -> None:
    method = make_method(probe=replace(PROBE, enabled=False))
    for task in SAMPLES:
        primitive, trainer = learn(method, task)
        assert "probe" not in trainer.seen
        assert primitive.decision["experts"] == {str(layer): 1 for layer in range(LAYERS)}


@pytest.mark.parametrize("alpha", [-1.0, 0.5, None])
def test_one_probe_run_serves_every_threshold(stream: Stream, alpha: float | None) -> None:
    """Learning from an earlier probe run is learning with a probe run of its own, bit for bit."""
    shared = make_method()
    probing = make_method(probe=replace(PROBE, alpha=3.0, max_layers=1))
    whole, parted = (make_method(probe=replace(PROBE, alpha=alpha)) for _ in range(2))
    for task in ("one", "two"):
        probed = probing.probe_task(task, SAMPLES[task], Watching(probing))
        assert probing.tasks == shared.tasks, "a probe run leaves the method as it was"
        wanted, _ = learn(whole, task)
        trainer = Watching(parted)
        assert same(parted.learn(task, SAMPLES[task], trainer, probed), wanted)
        assert list(trainer.seen) == ["train", "usage"]
        if task == "one":
            assert probed.decision["probing"] is None
            for method in (shared, probing):
                method.append(wanted)
    counts = [len(ffn.frozen) for ffn in shared.module.ffns]
    assert probed.decision["older"] == counts
    experts = whole.module.ffns[0]
    assert probed.decision["widths"][0] * EXPERTS.rank == sum(
        t.numel() for t in experts.expert(0).values()
    )


def test_later_tasks_probe_on_one_part_and_measure_on_another(stream: Stream) -> None:
    _, trainer = stream.learned["two"]
    seen = trainer.seen
    assert list(seen) == ["probe", "loss gain", "measure", "train", "usage", "features"]
    assert set(trainer.began["probe"].experts) == set(trainer.ended["train"].experts) | {
        f"layers.{layer}.{name}.{part}"
        for layer in range(LAYERS)
        for name in ("gate_proj", "up_proj", "down_proj")
        for part in "AB"
    }, "probes are in every layer"
    assert {len(t) for t in trainer.began["probe"].experts.values()} == {PROBE.experts}
    measuring = {*seen["loss gain"], *seen["measure"]}
    assert len(set(seen["probe"])) == len(measuring) == 8
    assert not set(seen["probe"]) & measuring
    assert len(seen["loss gain"]) == PROBE.gain_samples
    assert not set(seen["loss gain"]) & set(seen["measure"]), "no sample is measured twice"
    assert seen["train"] == seen["features"] == SAMPLES["two"]
    assert len(seen["usage"]) == EXPERTS.usage_samples
    assert trainer.taken == {"probe": PROBE.steps, "train": None}


def probed_alone(earlier: Sequence[Primitive], probes: Primitive, off: int | None) -> GrowingVLM:
    """A model of its own with the trained probes, those of layer `off` never added."""
    model = GrowingVLM(make_base(), top_k=EXPERTS.top_k, locator=LOCATOR)
    model.append(*earlier)
    init = {**probes.experts, **probes.routers}
    if off is not None:
        key = f"layers.{off}"
        init[key] = init[key][: len(model.ffns[off].frozen)]
    counts = {layer: PROBE.experts for layer in range(LAYERS) if layer != off}
    model.grow("two", counts, rank=EXPERTS.rank, lora_alpha=8, seed=99, init=init)
    return model


def partial_first() -> Primitive:
    """A task that left layers 1 and 3 without experts."""
    model = GrowingVLM(make_base())
    generator = torch.Generator().manual_seed(5)
    for p in model.grow("one", {0: 1, 2: 3}, rank=4, lora_alpha=8, seed=5):
        p.data += 0.2 * torch.randn(p.shape, generator=generator).to(p)
    return model.commit({})


@pytest.mark.parametrize("everywhere", [True, False])
def test_the_scores_recorded_are_those_of_the_probed_model(
    everywhere: bool, stream: Stream
) -> None:
    if everywhere:
        (first, _), (primitive, trainer) = stream.learned["one"], stream.learned["two"]
    else:
        method, first = make_method(), partial_first()
        method.append(first)
        primitive, trainer = learn(method, "two")
    decision, probes = primitive.decision, trainer.ended["probe"]
    assert set(decision["scores"]) == {"frequency", "excess", "loss_gain"}
    assert {len(values) for values in decision["scores"].values()} == {LAYERS}

    # What switching a layer's probes off costs: the loss of a model that never had them.
    few = trainer.seen["loss gain"]
    whole = answer_loss(probed_alone([first], probes, None), "two", few)
    alone = [
        answer_loss(probed_alone([first], probes, layer), "two", few) for layer in range(LAYERS)
    ]
    gains = np.array(alone) - whole
    assert np.abs(gains).min() > 1e-4, "every layer's probes matter"
    np.testing.assert_allclose(decision["scores"]["loss_gain"], gains, atol=2e-5)

    model = probed_alone([first], probes, None)
    older = [len(ffn.frozen) for ffn in model.ffns]
    assert decision["older"] == older == ([1] * LAYERS if everywhere else [1, 0, 3, 0])
    measuring = [*trainer.seen["loss gain"], *trainer.seen["measure"]]
    shares = largest_shares(model, "two", probes.routers, measuring)
    frequency = [own[n:].sum().item() for own, n in zip(shares, older, strict=True)]
    np.testing.assert_allclose(decision["scores"]["frequency"], frequency, atol=1e-5)
    uniform = [PROBE.experts / (n + PROBE.experts) for n in older]
    excess = np.array(frequency) - uniform
    np.testing.assert_allclose(decision["scores"]["excess"], excess, atol=1e-5)


@pytest.mark.parametrize("score", ["frequency", "excess", "loss_gain"])
def test_a_task_grows_where_its_recorded_score_says(score: Any) -> None:
    method = make_method(probe=replace(PROBE, score=score, alpha=0.0))
    learn(method, "one")
    primitive, _ = learn(method, "two")
    decision = json.loads(json.dumps(primitive.decision))
    values = np.array(decision["scores"][score])
    threshold = values.mean()  # alpha is 0
    assert decision["threshold"] == pytest.approx(threshold, abs=1e-5)
    grown = {int(layer) for layer, count in decision["experts"].items() if count}
    assert grown == set(np.flatnonzero(values > threshold))
    assert 0 < len(grown) < LAYERS
    assert {int(name.split(".")[1]) for name in primitive.experts} == grown
    assert decision["rule"]["score"] == score


def test_random_layers_are_drawn_anew_for_every_task_and_by_the_seed_alone() -> None:
    def drawn(seed: int, steps: int) -> list[tuple[str, ...]]:
        probe = replace(PROBE, rule="random", max_layers=2, steps=steps)
        method = make_method(probe=probe, seed=seed)
        learn(method, "one")
        return [tuple(learn(method, task)[0].decision["experts"]) for task in ("two", "three")]

    first, again, others = drawn(0, 2), drawn(0, 3), [drawn(seed, 1) for seed in range(1, 4)]
    assert first == again, "whatever was measured"
    assert all(len(layers) == 2 for layers in first)
    assert len({layers for each in (first, *others) for layers in each}) > 3


def test_a_budget_of_nothing_leaves_routers_alone() -> None:
    method = make_method(probe=replace(PROBE, max_layers=0))
    first, _ = learn(method, "one")
    primitive, _ = learn(method, "two")
    assert primitive.experts == {}
    assert primitive.decision["experts"] == {}
    assert primitive.decision["cut"]
    assert {len(w) for w in primitive.routers.values()} == {1}
    assert not any(torch.equal(w, first.routers[name]) for name, w in primitive.routers.items())


def test_a_budget_counts_experts_and_their_router_rows() -> None:
    first, _ = learn(make_method(), "one")
    cost = sum(first.parameter_counts().values()) - first.parameter_counts()["locator"]
    each = cost // LAYERS  # one expert a layer, alike in all layers, with one row of a router
    for budget, layers in ((2 * each, 2), (2 * each - 1, 1), (each - 1, 0)):
        method = make_method(probe=replace(PROBE, alpha=5.0, max_added_parameters=budget))
        method.append(first)
        primitive, _ = learn(method, "two")
        assert sum(primitive.decision["experts"].values()) == layers
        assert len(primitive.decision["cut"]) == LAYERS - layers


@pytest.mark.parametrize("init", ["used", "probe", "fresh"])
def test_training_starts_from_the_recorded_sources(init: Any) -> None:
    experts, probe = replace(EXPERTS, per_layer=2), replace(PROBE, init=init, alpha=5.0)
    method = make_method(experts, probe)
    first, _ = learn(method, "one")
    primitive, trainer = learn(method, "two")
    sources, began = primitive.decision["sources"], trainer.began["train"]
    probes = trainer.ended["probe"]
    assert set(sources) == {str(layer) for layer in range(LAYERS)}
    for layer, chosen in sources.items():
        router = probes.routers[f"layers.{layer}"]
        assert torch.equal(began.routers[f"layers.{layer}"][:2], router[:2])
        assert len(set(chosen)) == (1 if init == "fresh" else 2)
        for place, source in enumerate(chosen):
            assert (source is None) == (init == "fresh")
            assert init != "probe" or source >= 2
            tensors = {n: t for n, t in began.experts.items() if n.startswith(f"layers.{layer}.")}
            for name, tensor in tensors.items():
                if source is None:
                    assert name.endswith("A") or not tensor[place].any()
                else:
                    origin = first.experts if source < 2 else probes.experts
                    assert torch.equal(tensor[place], origin[name][source % 2])
    assert all(not torch.equal(t, began.experts[n]) for n, t in primitive.experts.items())


def test_with_residual_gates_what_a_task_grew_always_works_and_no_probe_does() -> None:
    method = make_method(replace(EXPERTS, gates="residual"))
    learn(method, "one")
    decision = learn(method, "two")[0].decision
    for layer, (ffn, shares) in enumerate(
        zip(method.module.ffns, decision["probe_usage"], strict=True)
    ):
        assert ffn.routers.always_on(0) == (0,)
        assert ffn.routers.always_on(1) == ((1,) if str(layer) in decision["experts"] else ())
        assert sum(shares) == pytest.approx(1, abs=1e-5), "older ones and probes share the tokens"


def test_every_task_and_seed_has_random_weights_of_its_own(stream: Stream) -> None:
    (one, first), (_, second), (_, third) = stream.learned.values()
    other, again = learn(make_method(seed=4), "one")
    name = "layers.0.up_proj.A"
    began = [t.began["probe"].experts[name][0] for t in (second, third)]
    began += [t.began["train"].experts[name][0] for t in (first, again)]
    assert len({tuple(A.flatten().tolist()) for A in began}) == 4
    assert not torch.equal(one.locator["encode.weight"], other.locator["encode.weight"])


def test_use_is_recorded_by_expert(stream: Stream) -> None:
    for primitive, trainer in stream.learned.values():
        shown = trainer.seen["usage"]
        assert len(shown) == EXPERTS.usage_samples
        wanted = largest_shares(stream.method.module, primitive.task, primitive.routers, shown)
        for recorded, shares in zip(primitive.decision["usage"], wanted, strict=True):
            np.testing.assert_allclose(recorded, shares, atol=1e-5)


# What it keeps


@torch.no_grad()
def test_without_experts_there_is_no_similarity() -> None:
    assert make_method().expert_similarity() == [None] * LAYERS


def test_similarity_is_the_mean_cosine_of_the_experts_products(stream: Stream) -> None:
    method = stream.method
    for ffn, mean in zip(method.module.ffns, method.expert_similarity(), strict=True):
        products = []
        for number in range(len(ffn.frozen)):
            expert = ffn.expert(number)
            keys = [ffn.expert_key(name) for name in ffn.maps]
            whole = [(expert[f"{k}.B"][0] @ expert[f"{k}.A"][0]).flatten() for k in keys]
            products.append(torch.cat(whole).double())
        if len(products) < 2:
            assert mean is None
            continue
        cosine = torch.nn.functional.cosine_similarity
        pairs = [cosine(a, b, dim=0).item() for a, b in combinations(products, 2)]
        assert mean == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


def test_learning_another_task_leaves_every_bit_of_the_earlier_ones() -> None:
    untouched, inputs = untouched_base(), make_inputs()
    method = make_method()
    assert method.tasks == ()
    seen: dict[str, Tensor] = {}
    base = untouched(**inputs).logits
    for task in SAMPLES:
        with torch.enable_grad():
            learn(method, task)
        seen[task] = method.module(inputs, task).logits
        for earlier, logits in seen.items():
            assert torch.equal(method.module(inputs, earlier).logits, logits), (earlier, task)
        assert torch.equal(method.module(inputs, BASE).logits, base)
        assert not [n for n, p in method.module.named_parameters() if p.requires_grad]
    assert method.tasks == tuple(SAMPLES)
    for a, b in (("one", "two"), ("two", "three")):
        assert (seen[a] - seen[b]).abs().max() > 1e-3


@torch.no_grad()
def test_appended_primitives_are_all_that_a_method_knows(stream: Stream) -> None:
    writer, reader = stream.method, make_method()
    log = [primitive for primitive, _ in stream.learned.values()]
    reader.append(*log)
    assert reader.tasks == writer.tasks == tuple(SAMPLES)
    assert reader.settings() == writer.settings()
    assert (reader.base_digest, reader.base_parameters) == (
        writer.base_digest,
        sum(p.numel() for p in make_base().parameters()),
    )
    inputs = make_inputs()
    for task in (BASE, *SAMPLES, ["two", BASE, "one"]):
        assert torch.equal(reader.module(inputs, task).logits, writer.module(inputs, task).logits)
    features = reader.features(inputs)
    assert torch.equal(features, writer.features(inputs))
    assert torch.equal(reader.locate(features).scores, writer.locate(features).scores)
    assert reader.locate(features).scores.shape == (3, 3)
    answers = [m.generate(inputs, 1, max_new_tokens=3, do_sample=False) for m in (reader, writer)]
    assert torch.equal(*answers)
    zero_shot = untouched_base().generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(reader.generate(inputs, BASE, max_new_tokens=3, do_sample=False), zero_shot)


def test_it_goes_on_from_primitives_as_if_it_had_never_stopped(stream: Stream) -> None:
    resumed = make_method()
    resumed.append(stream.learned["one"][0], stream.learned["two"][0])
    assert same(learn(resumed, "three")[0], stream.learned["three"][0])


def test_a_task_that_resumes_behind_its_decision_does_not_probe_again(stream: Stream) -> None:
    resumed = make_method()
    resumed.append(stream.learned["one"][0])
    whole, trainer = stream.learned["two"]
    again, second = learn(resumed, "two", notes=trainer.notes)
    assert list(second.seen) == ["train", "usage", "features"]
    assert second.began["train"].experts.keys() == trainer.began["train"].experts.keys()
    assert {n: t.shape for n, t in again.experts.items()} == {
        n: t.shape for n, t in whole.experts.items()
    }
    kept = {n: v for n, v in again.decision.items() if n != "usage"}
    assert (
        kept
        == {n: v for n, v in whole.decision.items() if n != "usage"}
        == trainer.notes["decision"]
    )


def test_recomputing_activations_trains_the_same_experts(stream: Stream) -> None:
    method = make_method()
    calls: list[bool] = []
    method.module.ffns[0].register_forward_pre_hook(
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    method.enable_gradient_checkpointing()
    primitive, trainer = learn(method, "one")
    assert sum(calls) == 2 * trainer.steps, "once forward and once again backward"
    for name, tensor in stream.learned["one"][0].experts.items():
        torch.testing.assert_close(primitive.experts[name], tensor)
