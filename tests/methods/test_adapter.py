"""What all adapters have in common, and the bounds. A loss's terms: test_ewc.py, test_lwf.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from support.devices import DEVICE
from support.plain_trainer import PlainTrainer, make_batch, make_samples
from support.rivals import (
    CONFIG,
    FORGETFUL,
    METHODS,
    MIXTURE,
    NOBODY,
    TASKS,
    alike,
    answers,
    assert_same,
    frozen,
    learn,
    logits,
    make_method,
    samples_of,
    stage_answers,
    untouched_answers,
)
from support.tiny_models import (
    CONFIGS,
    WIDTH,
    make_base,
    make_inputs,
    make_wide_base,
    make_wide_inputs,
    untouched_base,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from cmoe.config.parse import parse
from cmoe.methods.baselines.moelora import MoELoRA, MoELoRALinear
from cmoe.methods.baselines.zero_shot import ZeroShot
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.registry import methods
from cmoe.modeling.routers import BASE
from cmoe.run.stream import make_method as make_configured
from cmoe.store.model import create_store

adapters = pytest.mark.parametrize("name", METHODS)


# What adapters have in common


@adapters
def test_a_fresh_adapter_changes_nothing_and_training_changes_it_alone(name: str) -> None:
    untouched = untouched_base()
    before = {name: p.detach().clone() for name, p in untouched.named_parameters()}
    with torch.no_grad():
        base = untouched(**make_inputs()).logits
    method = make_method(name)
    assert torch.equal(logits(method), base)
    assert method.base_parameters == sum(p.numel() for p in before.values())
    for task in TASKS:
        primitive = learn(method, task)
        # What is trained is the adapter, all of it and nothing else, and the primitive holds it.
        now = frozen(method.module)
        assert now.keys() == before.keys()
        assert all(torch.equal(now[name], p) for name, p in before.items())
        trained = sum(p.numel() for p in method.module.parameters() if p.requires_grad)
        empty = name == "multitask" and task != TASKS[0]
        anchors = 2 * WIDTH if name == "hide_llava" else 0
        counts = {"experts": 0 if empty else trained, "routers": 0, "locator": anchors}
        assert primitive.parameter_counts() == counts | (
            {"memory": trained} if name == "ewc" else {}
        )
        assert (primitive.task, primitive.rank, primitive.lora_alpha) == (task, 4, 8)
    assert (logits(method) - base).abs().max() > 1e-3


@adapters
def test_the_base_answers_as_if_untouched_bit_for_bit(name: str) -> None:
    wanted = untouched_answers()
    method = make_method(name)
    assert alike(answers(method, BASE), wanted)
    for stage, task in enumerate(TASKS):
        learn(method, task)
        latest = method.answerer(stage, stage)
        assert not alike(answers(method, latest), wanted)
        assert alike(answers(method, BASE), wanted)
        assert not alike(answers(method, latest), wanted), "the adapter is back on afterwards"


@pytest.mark.parametrize("name", FORGETFUL)
def test_only_the_latest_stage_answers(name: str) -> None:
    method = make_method(name)
    with pytest.raises(ValueError, match="stage 0 is gone"):
        method.generate(make_inputs(), 0, max_new_tokens=1)
    for task in TASKS[:2]:
        learn(method, task)
    for stage in (0, 2):
        with pytest.raises(ValueError, match=rf"stage {stage} is gone: only stage 1 answers"):
            method.generate(make_inputs(), stage, max_new_tokens=1)
    method.generate(make_inputs(), 1, max_new_tokens=1)
    assert [method.answerer(1, task) for task in range(3)] == [1, 1, 1]


@adapters
def test_no_task_is_located(name: str) -> None:
    method = make_method(name)
    assert not method.locates
    assert method.joint == (name == "multitask")
    for ask in (lambda: method.features(make_inputs()), lambda: method.locate(torch.ones(1, 4))):
        with pytest.raises(NotImplementedError, match="no task to locate"):
            ask()


@adapters
def test_a_log_restores_any_stage_and_goes_on(name: str, tmp_path: Path) -> None:
    writer = make_method(name)
    store = create_store(tmp_path / "log", writer, name="tiny", revision="none", config={})
    seen = []
    for task in TASKS:
        primitive = learn(writer, task)
        store.append(primitive)
        assert_same(store.read(len(store) - 1), primitive)
        seen.append(stage_answers(writer))
    store.verify()
    assert alike(seen[0], seen[1]) == (name == "multitask")
    log = [store.read(index) for index in range(len(TASKS))]
    reader = make_method(name, seed=9)
    for stage, primitive in enumerate(log):
        reader.append(primitive)
        assert reader.tasks == TASKS[: stage + 1]
        assert alike(stage_answers(reader), seen[stage])
    # From there it learns what it would have learned without a stop.
    for count in (1, 2):
        resumed = make_method(name)
        resumed.append(*log[:count])
        for index in range(count, len(TASKS)):
            assert_same(learn(resumed, TASKS[index]), log[index])
            assert alike(stage_answers(resumed), seen[index])


@adapters
def test_a_primitive_is_a_copy_that_later_tasks_leave_alone(name: str) -> None:
    method = make_method(name)
    first = learn(method, "one")
    before = {name: t.clone() for name, t in first.experts.items()}
    second = learn(method, "two")
    assert all(torch.equal(t, before[name]) for name, t in first.experts.items())
    if name != "multitask":
        assert any(not torch.equal(t, before[name]) for name, t in second.experts.items())


@adapters
@torch.no_grad()
def test_the_first_loss_is_the_answers_cross_entropy_over_the_tokens_given(name: str) -> None:
    method = make_method(name)
    trainer = PlainTrainer(method.module, steps=1)
    samples = make_samples(4)
    with torch.enable_grad():
        method.learn("one", samples, trainer)
    assert trainer.seen["train"] == samples
    assert trainer.seen.keys() - {"fisher", "features"} == {"train"}
    inputs = make_batch(samples, answers=True)
    loss = trainer.losses["train"](method.module, inputs, 10.0)
    out = method.module(**{n: t for n, t in inputs.items() if n != "labels"}).logits
    wanted = nn.functional.cross_entropy(
        out[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), reduction="sum"
    )
    assert loss.item() == pytest.approx(wanted.item() / 10, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "passes", "taught"),
    [
        *(("lora", 12, 0), ("ewc", 12 + 2 * 2 * 5, 0), ("lwf", 12, 3), ("moelora", 12, 0)),
        *(("olora", 12, 0), ("hide_llava", 12, 0), ("replay", 12, 0)),
    ],
)
def test_recomputing_activations_trains_the_same_adapter(
    name: str, passes: int, taught: int
) -> None:
    """Two tasks of 3 steps: each layer once forward and once again backward.

    So are EWC's importances measured; LwF's teacher runs once a step.
    """
    plain, recomputed = make_method(name), make_method(name)
    calls: list[bool] = []
    decoder: Any = recomputed._base.get_decoder()
    ffn = decoder.layers[0].mlp
    ffn.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    recomputed.enable_gradient_checkpointing()
    for task in TASKS[:2]:
        a, b = learn(plain, task), learn(recomputed, task)
        for key, tensor in a.experts.items():
            torch.testing.assert_close(tensor, b.experts[key])
    assert (sum(calls), len(calls) - sum(calls)) == (passes, taught)


@pytest.mark.parametrize("name", ["lora", "moelora"])
def test_fresh_weights_are_the_seeds_and_the_global_state_stays(name: str) -> None:
    def weights(seed: int, state: int) -> list[Tensor]:
        base = make_base()
        torch.manual_seed(state)
        wanted = torch.rand(3)
        torch.manual_seed(state)
        method = METHODS[name](base, seed)
        assert torch.equal(torch.rand(3), wanted)
        return [p.detach() for p in method.module.parameters() if p.requires_grad]

    assert alike(weights(0, 1), weights(0, 2))
    assert not alike(weights(0, 1), weights(1, 1))


@pytest.mark.parametrize("name", ["lora", "moelora"])
@torch.no_grad()
def test_operations_are_those_that_torch_counts(name: str) -> None:
    method = make_method(name)
    inputs = make_inputs()

    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            method.module(**inputs)
        return int(counter.get_total_flops())

    adapted = counted()
    with method._off():
        added = (adapted - counted()) / inputs["input_ids"].numel()
    assert method.flops_per_token(0) == pytest.approx(added, rel=0.01)
    assert method.flops_per_token(BASE) > method.flops_per_token(0) > 0


@pytest.mark.parametrize("name", ["lora", "lwf", "moelora"])
def test_operations_of_training_are_those_that_torch_counts(name: str) -> None:
    """Of the decoder's linear maps, where what stands below them is trained, too."""
    base = make_wide_base()
    inputs = make_wide_inputs(batch=1, text=16)
    method = METHODS[name](base, 0)
    embeddings: Any = base.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, args, out: out.requires_grad_())
    trainer = PlainTrainer(method.module, steps=1, collate=lambda samples, answers: inputs)
    for task in range(2):
        method.learn(TASKS[task], make_samples(1), trainer)
        with FlopCounterMode(display=False) as counter:
            trainer.losses["train"](method.module, inputs, 1.0).backward()
        maps = torch.ops.aten.mm, torch.ops.aten.addmm
        counts = counter.get_flop_counts()
        at = re.compile(r".*language_model\.layers\.\d+")
        layers = [ops for name, ops in counts.items() if at.fullmatch(name)]
        assert len(layers) == 4
        spent = sum(ops.get(op, 0) for ops in layers for op in maps)
        found = method.learning_flops(task, {"train": inputs["input_ids"].numel()})
        assert found == pytest.approx(spent, rel=0.01)


# What is adapted


def linear_maps(base: PreTrainedModel) -> list[nn.Linear]:
    """Of the decoder's layers."""
    decoder: Any = base.get_decoder()
    return [m for layer in decoder.layers for m in layer.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("family", CONFIGS)
def test_every_linear_map_of_the_decoder_has_one_pair_and_no_other_module(family: str) -> None:
    base = make_base(family)
    shapes = sorted((m.in_features, m.out_features) for m in linear_maps(base))
    method = SequentialLoRA(base, CONFIG, 0)
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, p in method.module.named_parameters():
        if p.requires_grad:
            at, _, part = name.partition(".lora_")
            pairs.setdefault(at, {})[part[0]] = tuple(p.shape)
    assert all(p["A"][0] == p["B"][1] == CONFIG.rank for p in pairs.values())
    assert sorted((p["A"][1], p["B"][0]) for p in pairs.values()) == shapes
    inside = {id(p) for p in cast(Any, base.get_decoder()).parameters()}
    assert {id(p) for p in method.module.parameters() if p.requires_grad} <= inside


@pytest.mark.parametrize("family", CONFIGS)
def test_every_linear_map_of_the_decoder_has_one_mixture_and_no_other_module(family: str) -> None:
    base = make_base(family)
    maps = {id(m) for m in linear_maps(base)}
    method = MoELoRA(base, MIXTURE, 0)
    found = [m for m in method.module.modules() if isinstance(m, MoELoRALinear)]
    assert len(found) == len(maps)
    assert {id(m.linear) for m in found} == maps
    trained = [p for p in method.module.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for m in found for p in (m.A, m.B, m.router)}
    # CoIN: so many experts of this rank at each map, and a router of its own.
    rank, experts = MIXTURE.rank, MIXTURE.experts
    sizes = [(m.linear.in_features, m.linear.out_features) for m in found]
    wanted = sum(experts * (rank * (i + o) + i) for i, o in sizes)
    assert sum(p.numel() for p in trained) == wanted


@torch.no_grad()
def test_an_adapted_map_adds_its_scaled_product() -> None:
    method = make_method("lora")
    with torch.enable_grad():
        learn(method, "one")
    wrapped = {n: m for n, m in method.module.named_modules() if hasattr(m, "lora_A")}
    assert wrapped
    for m in wrapped.values():
        (A,), (B,) = m.lora_A.values(), m.lora_B.values()
        x = torch.randn(5, A.in_features, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        added = CONFIG.lora_alpha / CONFIG.rank * (x @ A.weight.T @ B.weight.T)
        assert added.abs().max() > 1e-3
        torch.testing.assert_close(m(x), m.base_layer(x) + added)


# The bounds


def test_an_adapter_per_task_answers_the_same_whatever_is_learned_later() -> None:
    method = make_method("per_task_lora")
    seen: list[list[Tensor]] = []
    for stage, task in enumerate(TASKS):
        learn(method, task)
        assert [method.answerer(stage, t) for t in range(3)] == [*range(stage + 1), BASE, BASE][:3]
        seen.append(answers(method, stage))
        for earlier in (*reversed(range(stage)), stage):
            assert alike(answers(method, earlier), seen[earlier])
    assert not any(alike(seen[a], seen[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_an_adapter_per_task_begins_afresh() -> None:
    stream = make_method("per_task_lora")
    for task in TASKS:
        learned = learn(stream, task)
        answers(stream, 0)  # what answers last leaves nothing to what is learned next
        assert_same(learned, learn(make_method("per_task_lora"), task))


def test_one_adapter_learns_all_tasks_in_the_place_of_the_first() -> None:
    every = [sample for task in TASKS for sample in samples_of(task)]
    method, plain = make_method("multitask"), make_method("lora")
    first = method.learn(TASKS[0], every, PlainTrainer(method.module, steps=6))
    assert_same(first, plain.learn(TASKS[0], every, PlainTrainer(plain.module, steps=6)))
    seen = answers(method, 0)
    for stage, task in enumerate(TASKS):
        if stage > 0:
            primitive = method.learn(task, (), NOBODY)
            assert set(primitive.parameter_counts().values()) == {0}
            assert primitive.task == task
        assert method.tasks == TASKS[: stage + 1]
        assert [method.answerer(stage, t) for t in range(3)] == [0, *[0] * stage, BASE, BASE][:3]
        assert alike(answers(method, 0), seen)


def test_the_base_alone_learns_nothing_and_answers_as_it_is(tmp_path: Path) -> None:
    wanted = untouched_answers()
    method = ZeroShot(make_base())
    store = create_store(tmp_path / "log", method, name="tiny", revision="none", config={})
    for stage, task in enumerate(TASKS):
        primitive = method.learn(task, samples_of(task), NOBODY)
        store.append(primitive)
        assert set(primitive.parameter_counts().values()) == {0}
        assert {method.answerer(stage, t) for t in range(3)} == {BASE}
        assert alike(answers(method, BASE), wanted)
    assert not any(p.requires_grad for p in method.module.parameters())
    assert method.flops_per_token(BASE) > method.flops_per_token(0) == 0
    store.verify()
    reader = ZeroShot(make_base())
    reader.append(*(store.read(index) for index in range(3)))
    assert reader.tasks == method.tasks == store.tasks == TASKS
    assert alike(answers(reader, BASE), wanted)


# All of them, as a run's configuration names them


@pytest.mark.parametrize("name", methods())
def test_every_method_that_has_a_name_can_be_made_and_described(name: str, tmp_path: Path) -> None:
    config = parse(["--name", "x", "--method", name])
    method = make_configured(config, make_base())
    settings = method.settings()
    assert json.loads(json.dumps(settings)) == settings
    store = create_store(tmp_path / "log", method, name="tiny", revision="none", config={})
    assert store.header.settings == settings
    assert method.tasks == ()
    assert method.joint == (name == "multitask")
    assert method.locates == (name in ("cmoe", "expand_all", "located_lora"))
    if not method.locates:
        assert settings["method"] == name
