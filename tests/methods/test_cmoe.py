"""CMoE on a tiny model: it grows where it should, for the reasons it records, and forgets nothing.

What it records is computed a second time here, from the model's own logits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from support.devices import DEVICE
from support.plain_trainer import PlainTrainer, make_batch, make_samples
from support.tiny_models import LAYERS, make_base, make_inputs, untouched_base
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cmoe.data.samples import Sample
from cmoe.methods.cmoe import CMoE
from cmoe.methods.method import Loss
from cmoe.methods.settings import ExpertsConfig, ProbeConfig
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import LocatorConfig

EXPERTS = ExpertsConfig(rank=4, lora_alpha=8, top_k=2, usage_samples=7)
PROBE = ProbeConfig(fraction=0.4, steps=4, gain_samples=6, experts=2, alpha=0.2)
LOCATOR = LocatorConfig(layer=2, pooling="mean_text", hidden=8, latent=4, steps=5, batch_size=8)
SAMPLES = {task: make_samples(20, start=100 * i) for i, task in enumerate(("one", "two", "three"))}


def make_method(
    experts: ExpertsConfig = EXPERTS, probe: ProbeConfig = PROBE, seed: int = 3
) -> CMoE:
    return CMoE(make_base(), experts, probe, LOCATOR, seed)


class Watching(PlainTrainer):
    """Keeps a copy of what every training began with and ended in."""

    def __init__(self, method: CMoE, notes: Mapping[str, Any] | None = None) -> None:
        super().__init__(method.module, notes=notes)
        self.began: dict[str, Primitive] = {}
        self.ended: dict[str, Primitive] = {}

    def fit(
        self, phase: str, samples: Sequence[Sample], loss: Loss, steps: int | None = None
    ) -> None:
        self.began[phase] = self.module.learning()
        super().fit(phase, samples, loss, steps)
        self.ended[phase] = self.module.learning()


def learn(
    method: CMoE, task: str, notes: Mapping[str, Any] | None = None
) -> tuple[Primitive, Watching]:
    trainer = Watching(method, notes)
    return method.learn(task, SAMPLES[task], trainer), trainer


def same(a: Primitive, b: Primitive) -> bool:
    return a.decision == b.decision and all(
        ours.keys() == theirs.keys()
        and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        for ours, theirs in zip(a.parts().values(), b.parts().values(), strict=True)
    )


@torch.no_grad()
def answer_loss(model: GrowingVLM, task: str, samples: Sequence[Sample]) -> float:
    """Mean cross-entropy of the answers' tokens, from the logits."""
    inputs = make_batch(samples, answers=True)
    labels = inputs.pop("labels")[:, 1:]
    log_probs = model(inputs, task).logits[:, :-1].double().log_softmax(-1)
    kept = labels != -100
    chosen = log_probs.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return -chosen[kept].mean().item()


@dataclass(frozen=True)
class Stream:
    """A method that has learned all tasks, and what it was learned with."""

    method: CMoE
    learned: dict[str, tuple[Primitive, Watching]]


@pytest.fixture(scope="module")
def stream() -> Stream:
    method = make_method()
    return Stream(method, {task: learn(method, task) for task in SAMPLES})


@torch.no_grad()
def largest_shares(
    model: GrowingVLM, task: str, routers: Mapping[str, Tensor], samples: Sequence[Sample]
) -> list[Tensor]:
    """Per layer the share of the tokens, padding aside, whose largest gate is each expert's."""
    hidden: list[Tensor] = []
    hooks = [
        ffn.register_forward_pre_hook(lambda _, args: hidden.append(args[0])) for ffn in model.ffns
    ]
    inputs = make_batch(samples, answers=True)
    model(inputs, task)
    for hook in hooks:
        hook.remove()
    kept = inputs["attention_mask"].bool()
    assert not kept.all()
    rows = [routers[f"layers.{i}"].to(DEVICE) for i in range(len(hidden))]
    largest = [(h[kept] @ r.T).argmax(-1).cpu() for h, r in zip(hidden, rows, strict=True)]
    return [
        torch.bincount(hits, minlength=len(r)) / len(hits)
        for hits, r in zip(largest, rows, strict=True)
    ]


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
    assert list(seen) == ["probe", "measure", "loss gain", "train", "usage", "features"]
    assert set(trainer.began["probe"].experts) == set(trainer.ended["train"].experts) | {
        f"layers.{layer}.{name}.{part}"
        for layer in range(LAYERS)
        for name in ("gate_proj", "up_proj", "down_proj")
        for part in "AB"
    }, "probes are in every layer"
    assert {len(t) for t in trainer.began["probe"].experts.values()} == {PROBE.experts}
    assert len(set(seen["probe"])) == len(set(seen["measure"])) == 8
    assert not set(seen["probe"]) & set(seen["measure"])
    assert len(seen["loss gain"]) == PROBE.gain_samples
    assert set(seen["loss gain"]) <= set(seen["measure"])
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
    shares = largest_shares(model, "two", probes.routers, trainer.seen["measure"])
    frequency = [own[n:].sum().item() for own, n in zip(shares, older, strict=True)]
    np.testing.assert_allclose(decision["scores"]["frequency"], frequency, atol=1e-5)
    uniform = [PROBE.experts / (n + PROBE.experts) for n in older]
    excess = np.array(frequency) - uniform
    np.testing.assert_allclose(decision["scores"]["excess"], excess, atol=1e-5)


@pytest.mark.parametrize("score", ["frequency", "excess", "loss_gain", "random"])
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
    def drawn(seed: int, steps: int) -> list[list[float]]:
        method = make_method(probe=replace(PROBE, score="random", steps=steps), seed=seed)
        learn(method, "one")
        return [learn(method, task)[0].decision["scores"]["random"] for task in ("two", "three")]

    first, again, other = drawn(0, 2), drawn(0, 3), drawn(1, 2)
    assert first == again, "whatever was measured"
    assert len({tuple(row) for row in (*first, *other)}) == 4
    assert all(0 <= value < 1 for row in first for value in row)


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


# The loss, and what it costs


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_is_the_answers_cross_entropy_and_the_weighted_balance(weight: float) -> None:
    method = make_method(replace(EXPERTS, balance_weight=weight, per_layer=3))
    _, trainer = learn(method, "one")
    samples = SAMPLES["one"][:4]
    inputs = make_batch(samples, answers=True)
    with torch.no_grad():
        balance = method.module(inputs, "one", record=True).balance_loss
        # The micro-batch may be part of a batch with other answers: 10 tokens in all.
        loss = trainer.losses["train"](method.module, inputs, 10.0)
    summed = answer_loss(method.module, "one", samples) * 8
    assert loss.item() == pytest.approx(summed / 10 + weight * balance.item(), rel=1e-5)
    assert balance.item() >= 0.99 * LAYERS, "by Switch's definition 1 at best, in every layer"


@torch.no_grad()
def test_operations_are_those_that_torch_counts() -> None:
    method = make_method(replace(EXPERTS, top_k=9, per_layer=2), replace(PROBE, alpha=0.0))
    with torch.enable_grad():
        for task in SAMPLES:
            learn(method, task)
    inputs = make_inputs()
    tokens = inputs["input_ids"].numel()

    def counted(task: int) -> int:
        # Torch counts the product that adds to a copy, but not the same one in place.
        in_place = {torch.ops.aten.addmm_: lambda _, a, b, **kwargs: 2 * a[0] * a[1] * b[1]}
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            method.module(inputs, task)
        return counter.get_total_flops()

    added = [(counted(task) - counted(BASE)) / tokens for task in range(3)]
    formula = [method.flops_per_token(task) for task in range(3)]
    assert min(added) > 0
    np.testing.assert_allclose(formula, added, rtol=0.01)

    decoder = make_base().get_decoder()
    with FlopCounterMode(display=False) as counter:
        decoder(inputs_embeds=torch.zeros(1, 10, decoder.config.hidden_size, device=DEVICE))
    products = counter.get_flop_counts()["Global"]
    linear = sum(n for op, n in products.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert method.flops_per_token(BASE) == pytest.approx(linear / 10, rel=0.01)


class Counting(PlainTrainer):
    """Counts the tokens of every phase."""

    def __init__(self, module: GrowingVLM) -> None:
        super().__init__(module, collate=self.counted)
        self.tokens: dict[str, int] = {}

    def counted(self, samples: Sequence[Sample], *, answers: bool) -> dict[str, Tensor]:
        inputs = make_batch(samples, answers=answers)
        phase = list(self.seen)[-1]
        self.tokens[phase] = self.tokens.get(phase, 0) + inputs["input_ids"].numel()
        return inputs


def test_operations_of_learning_are_those_that_torch_counts() -> None:
    """Of the decoder's linear maps, where what stands below them is trained, too."""
    method = make_method(replace(EXPERTS, top_k=9), replace(PROBE, alpha=None, experts=1))
    learn(method, "one")
    embeddings: Any = method.module.base.get_input_embeddings()
    embeddings.register_forward_hook(
        lambda _, args, out: out.requires_grad_() if torch.is_grad_enabled() else out
    )
    trainer = Counting(method.module)
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **kwargs: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        method.learn("two", SAMPLES["two"], trainer)
    assert trainer.tokens.keys() == {"probe", "measure", "loss gain", "train", "usage", "features"}
    at = re.compile(r".*language_model\.layers\.\d+")
    maps = torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_
    counts = counter.get_flop_counts()
    spent = sum(ops.get(op, 0) for name, ops in counts.items() if at.fullmatch(name) for op in maps)
    assert method.learning_flops(1, trainer.tokens) == pytest.approx(spent, rel=0.05)


def test_a_token_meets_top_k_experts_at_most() -> None:
    wide = make_method(replace(EXPERTS, top_k=1, per_layer=3), replace(PROBE, enabled=False))
    narrow = make_method(replace(EXPERTS, top_k=1, per_layer=1), replace(PROBE, enabled=False))
    for method in (wide, narrow):
        learn(method, "one")
    router_rows = 2 * 2 * wide.module.ffns[0].hidden_size * LAYERS  # two more experts a layer
    assert wide.flops_per_token(0) == narrow.flops_per_token(0) + router_rows


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"rank": 0}, "experts.rank is 0; at least 1"),
        ({"top_k": 0}, "experts.top_k is 0; at least 1"),
        ({"per_layer": 0}, "experts.per_layer is 0; at least 1"),
        ({"balance_weight": -1.0}, "experts.balance_weight is -1.0; at least 0"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        ExpertsConfig(**changes)
