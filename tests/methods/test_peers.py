"""SequentialLoRA: one adapter that goes on training; the base below it stays what it was."""

from __future__ import annotations

import pytest
import torch
from plain_trainer import PlainTrainer, make_batch, make_samples
from tiny_models import CONFIGS, make_base, make_inputs
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cmoe.methods.peers import LoRAConfig, SequentialLoRA
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE

CONFIG = LoRAConfig(rank=4, lora_alpha=8)
TASKS = ("one", "two", "three")


def make_method(seed: int = 0, family: str = "llava") -> SequentialLoRA:
    return SequentialLoRA(make_base(family), CONFIG, seed)


def learn(method: SequentialLoRA, task: str) -> Primitive:
    samples = make_samples(8, start=100 * TASKS.index(task))
    return method.learn(task, samples, PlainTrainer(method.module))


@torch.no_grad()
def logits(method: SequentialLoRA) -> Tensor:
    out: Tensor = method.module(**make_inputs()).logits
    return out


@torch.no_grad()
def answers(method: SequentialLoRA, task: int) -> list[Tensor]:
    given = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    made = method.generate(make_inputs(), task, return_dict_in_generate=True, **given)
    return [made.sequences, *made.logits]


def frozen(module: nn.Module) -> dict[str, Tensor]:
    """The base's own weights, by their names before it was wrapped."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): p.detach().clone()
        for name, p in module.named_parameters()
        if "lora_" not in name
    }


def test_a_fresh_adapter_changes_nothing_and_training_changes_it_alone() -> None:
    untouched = make_base()
    before = {name: p.detach().clone() for name, p in untouched.named_parameters()}
    with torch.no_grad():
        base = untouched(**make_inputs()).logits
    method = make_method()
    assert torch.equal(logits(method), base)
    assert method.base_parameters == sum(p.numel() for p in before.values())
    for task in TASKS:
        primitive = learn(method, task)
        now = frozen(method.module)
        assert now.keys() == before.keys()
        assert all(torch.equal(now[name], p) for name, p in before.items())
        # What may change is the adapter, all of it and nothing else, and the primitive holds it.
        trainable = {n: p for n, p in method.module.named_parameters() if p.requires_grad}
        assert all("lora_" in name for name in trainable)
        assert primitive.parameter_counts() == {
            "experts": sum(p.numel() for p in trainable.values()),
            "routers": 0,
            "locator": 0,
        }
        assert (primitive.task, primitive.rank, primitive.lora_alpha) == (task, 4, 8)
    assert (logits(method) - base).abs().max() > 1e-3


@pytest.mark.parametrize("family", CONFIGS)
def test_every_linear_map_of_the_decoder_has_one_pair_and_no_other_module(family: str) -> None:
    base = make_base(family)
    layers = base.get_decoder().layers
    linears = [m for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)]
    shapes = sorted((m.in_features, m.out_features) for m in linears)
    method = SequentialLoRA(base, CONFIG, 0)
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, p in method.module.named_parameters():
        if p.requires_grad:
            at, _, part = name.partition(".lora_")
            pairs.setdefault(at, {})[part[0]] = tuple(p.shape)
    assert all(p["A"][0] == p["B"][1] == CONFIG.rank for p in pairs.values())
    assert sorted((p["A"][1], p["B"][0]) for p in pairs.values()) == shapes
    inside = {id(p) for p in base.get_decoder().parameters()}
    assert {id(p) for p in method.module.parameters() if p.requires_grad} <= inside


@torch.no_grad()
def test_an_adapted_map_adds_its_scaled_product() -> None:
    method = make_method()
    with torch.enable_grad():
        learn(method, "one")
    wrapped = {n: m for n, m in method.module.named_modules() if hasattr(m, "lora_A")}
    assert wrapped
    for m in wrapped.values():
        (A,), (B,) = m.lora_A.values(), m.lora_B.values()
        x = torch.randn(5, A.in_features, generator=torch.Generator().manual_seed(0))
        added = CONFIG.lora_alpha / CONFIG.rank * (x @ A.weight.T @ B.weight.T)
        assert added.abs().max() > 1e-3
        torch.testing.assert_close(m(x), m.base_layer(x) + added)


def test_recomputing_activations_trains_the_same_adapter() -> None:
    plain, recomputed = make_method(), make_method()
    calls: list[int] = []
    layer = recomputed._base.get_decoder().layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(0))
    recomputed.enable_gradient_checkpointing()
    a, b = learn(plain, "one"), learn(recomputed, "one")
    assert len(calls) == 6, "3 steps, each layer once forward and once again backward"
    for name, tensor in a.experts.items():
        torch.testing.assert_close(tensor, b.experts[name])


def test_zero_shot_is_the_untouched_base_bit_for_bit() -> None:
    given = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    # Frozen, too: torch multiplies by a weight that requires a gradient in another order.
    untouched = make_base().requires_grad_(False)
    made = untouched.generate(**make_inputs(), return_dict_in_generate=True, **given)
    wanted = [made.sequences, *made.logits]
    method = make_method()
    for task in (None, *TASKS):
        if task is not None:
            learn(method, task)
            latest = answers(method, len(method.tasks) - 1)
            assert not torch.equal(latest[1], wanted[1]), "the adapter is back on afterwards"
        found = answers(method, BASE)
        assert len(found) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_only_the_latest_stage_answers() -> None:
    method = make_method()
    with pytest.raises(ValueError, match="stage 0 is gone"):
        method.generate(make_inputs(), 0, max_new_tokens=1)
    for task in TASKS[:2]:
        learn(method, task)
    for stage in (0, 2):
        with pytest.raises(ValueError, match=rf"stage {stage} is gone: only stage 1 answers"):
            method.generate(make_inputs(), stage, max_new_tokens=1)
    method.generate(make_inputs(), 1, max_new_tokens=1)
    assert not method.locates
    for ask in (lambda: method.features(make_inputs()), lambda: method.locate(torch.ones(1, 4))):
        with pytest.raises(NotImplementedError, match="no task to locate"):
            ask()


def test_a_log_of_adapters_restores_any_stage_and_goes_on() -> None:
    writer = make_method()
    log, seen = [], []
    for task in TASKS:
        log.append(learn(writer, task))
        seen.append(logits(writer))
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    for count in range(1, 4):
        reader = make_method(seed=9)
        reader.append(*log[:count])
        assert reader.tasks == TASKS[:count]
        assert torch.equal(logits(reader), seen[count - 1])
    # From there it learns what it would have learned without a stop.
    resumed = make_method(seed=9)
    for primitive in log[:2]:
        resumed.append(primitive)
    again = learn(resumed, "three")
    assert again.experts.keys() == log[2].experts.keys()
    assert all(torch.equal(t, log[2].experts[name]) for name, t in again.experts.items())


def test_a_primitive_is_a_copy_that_later_tasks_leave_alone() -> None:
    method = make_method()
    first = learn(method, "one")
    before = {name: t.clone() for name, t in first.experts.items()}
    second = learn(method, "two")
    assert all(torch.equal(t, before[name]) for name, t in first.experts.items())
    assert any(not torch.equal(t, before[name]) for name, t in second.experts.items())


def test_fresh_weights_are_the_seeds_and_the_global_state_stays() -> None:
    def weights(seed: int, state: int) -> list[Tensor]:
        base = make_base()
        torch.manual_seed(state)
        wanted = torch.rand(3)
        torch.manual_seed(state)
        method = SequentialLoRA(base, CONFIG, seed)
        assert torch.equal(torch.rand(3), wanted)
        return [p.detach() for n, p in method.module.named_parameters() if "lora_A" in n]

    def alike(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert alike(weights(0, 1), weights(0, 2))
    assert not alike(weights(0, 1), weights(1, 1))


@torch.no_grad()
def test_the_loss_is_the_answers_cross_entropy_over_the_tokens_given() -> None:
    method = make_method()
    trainer = PlainTrainer(method.module, steps=1)
    samples = make_samples(4)
    with torch.enable_grad():
        method.learn("one", samples, trainer)
    assert trainer.seen == {"train": samples}
    inputs = make_batch(samples, answers=True)
    loss = trainer.losses["train"](method.module, inputs, 10.0)
    out = method.module(**{n: t for n, t in inputs.items() if n != "labels"}).logits
    wanted = nn.functional.cross_entropy(
        out[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), reduction="sum"
    )
    assert loss.item() == pytest.approx(wanted.item() / 10, rel=1e-5)


@torch.no_grad()
def test_operations_are_those_that_torch_counts() -> None:
    method = make_method()
    inputs = make_inputs()

    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            method.module(**inputs)
        return counter.get_total_flops()

    adapted = counted()
    with method.module.disable_adapter():
        added = (adapted - counted()) / inputs["input_ids"].numel()
    assert method.flops_per_token(0) == pytest.approx(added, rel=0.01)
    assert method.flops_per_token(BASE) > method.flops_per_token(0) > 0
