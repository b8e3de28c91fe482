"""GrowingVLM: nothing learned later changes what was learned before, on any model family."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from support.devices import DEVICE
from support.grown import SMALL, STREAM, grown, learn, randomise
from support.tiny_models import CONFIGS, LAYERS, WIDTH, make_base, make_inputs, untouched_base
from torch import Tensor

from cmoe.modeling.base import fingerprint
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.routers import BASE, Usage

pytestmark = pytest.mark.usefixtures("each_way")


GROWN = [(family, "renormalized", 0) for family in CONFIGS] + [
    ("llava", "softmax", 0),
    ("llava", "residual", 0),
    *((family, "residual", 3) for family in CONFIGS),
]


@pytest.mark.parametrize(("family", "gates", "attention"), GROWN)
@torch.no_grad()
def test_later_tasks_leave_every_bit_of_earlier_ones(
    family: str, gates: Any, attention: int
) -> None:
    inputs = make_inputs(family)
    untouched = untouched_base(family)(**inputs).logits
    model = GrowingVLM(make_base(family), gates=gates, attention=attention)
    assert torch.equal(model(inputs, BASE).logits, untouched)
    seen: dict[str, Tensor] = {}
    answers: dict[str, Tensor] = {}
    for task in STREAM:
        learn(model, task)
        seen[task] = model(inputs, task).logits
        answers[task] = model.generate(inputs, task, max_new_tokens=4).sequences
        for earlier, logits in seen.items():
            assert torch.equal(model(inputs, earlier).logits, logits), (earlier, task)
            again = model.generate(inputs, earlier, max_new_tokens=4).sequences
            assert torch.equal(again, answers[earlier])
        assert torch.equal(model(inputs, BASE).logits, untouched)
    distinct = [untouched, *seen.values()]
    for i, a in enumerate(distinct):
        for b in distinct[i + 1 :]:
            assert (a - b).abs().max() > 0.01, "each task answers in its own way"


@pytest.mark.parametrize(("family", "gates", "attention"), GROWN)
@torch.no_grad()
def test_a_mixed_batch_gives_each_sample_its_own_tasks_answer(
    family: str, gates: Any, attention: int
) -> None:
    model = grown(family, gates=gates, attention=attention)
    inputs = make_inputs(family, batch=6)
    tasks = ["fourth", BASE, "first", "third", "second", "fourth"]
    mixed = model(inputs, tasks).logits
    for i, task in enumerate(tasks):
        alone = model(inputs, task).logits[i]
        torch.testing.assert_close(mixed[i], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed[1], untouched_base(family)(**inputs).logits[1])
    generated = model.generate(inputs, tasks, max_new_tokens=4, do_sample=False)
    assert generated.tasks == (3, BASE, 0, 2, 1, 3)
    for i, task in enumerate(tasks):
        alone = model.generate(inputs, task, max_new_tokens=4, do_sample=False).sequences[i]
        width = min(len(alone), generated.sequences.shape[1])
        assert torch.equal(generated.sequences[i, :width], alone[:width])


@torch.no_grad()
def test_generation_with_a_cache_equals_generation_without() -> None:
    model, inputs = grown(), make_inputs(batch=4)
    tasks = ["second", "fourth", BASE, "first"]
    asked = {"max_new_tokens": 6, "do_sample": False}
    cached = model.generate(inputs, tasks, use_cache=True, **asked).sequences
    plain = model.generate(inputs, tasks, use_cache=False, **asked).sequences
    assert torch.equal(cached, plain)
    beams = model.generate(inputs, tasks, num_beams=3, **asked)
    assert beams.tasks == (1, 3, BASE, 0)
    alone = model.generate(inputs, "fourth", num_beams=3, **asked).sequences[1]
    assert torch.equal(beams.sequences[1, : len(alone)], alone[: beams.sequences.shape[1]])


@pytest.mark.parametrize("attention", [0, 2])
def test_an_optimizer_step_moves_the_new_experts_and_routers_alone(attention: int) -> None:
    model = grown(attention=attention)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    buffers = {n: t.clone() for n, t in model.named_buffers()}
    parameters = model.grow("fifth", {1: 2, 3: 1}, rank=8, lora_alpha=16, seed=9)
    randomise(model, seed=3)
    start = [p.detach().clone() for p in parameters]
    inputs = make_inputs()
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    out = model(inputs | {"labels": inputs["input_ids"]}, "fifth", record=True)
    assert out.loss is not None
    assert out.balance_loss is not None
    (out.loss + 0.01 * out.balance_loss).backward()
    optimizer.step()
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in parameters}
    assert all((p != old).any() for p, old in zip(parameters, start, strict=True))
    frozen = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, old in (before | buffers).items():
        assert torch.equal(frozen[name], old), name
    assert not any(p.requires_grad for n, p in model.named_parameters() if n in before)
    # layers 1 and 3 have new experts; layers 0 and 2 a new router over old ones
    assert len(parameters) == 2 * 6 + 4 + (2 * 8 if attention else 0)


@pytest.mark.parametrize(("family", "attention"), [("llava", 0), ("smolvlm", 0), ("llava", 2)])
def test_gradient_checkpointing_recomputes_with_the_same_routing(
    family: str, attention: int
) -> None:
    gradients = []
    for checkpointed in (0, 2, None):
        model = grown(family, attention=attention)
        parameters = model.grow("fifth", {1: 2, 3: 1}, rank=8, lora_alpha=16, seed=9)
        randomise(model, seed=3)
        if checkpointed != 0:
            model.enable_gradient_checkpointing(checkpointed)
        model.train()
        inputs = make_inputs(family)
        inputs["labels"] = inputs["input_ids"]
        first = model(inputs, "fifth", record=True, use_cache=False)
        # Another forward pass before the backward pass of the first: its routing must not leak.
        second = model(inputs, ["fifth", "first", BASE], use_cache=False)
        assert len(first.usage) == LAYERS
        (first.loss + 0.1 * first.balance_loss + second.loss).backward()
        assert len(first.usage) == LAYERS
        gradients.append([p.grad for p in parameters])
    for plain, *recomputed in zip(*gradients, strict=True):
        for other in recomputed:
            torch.testing.assert_close(plain, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llava", "smolvlm"])
def test_labels_of_the_last_places_give_the_loss_of_a_whole_row(family: str) -> None:
    """What the first of them would be predicted from lies before them: it counts for nothing."""
    model, inputs = grown(family), make_inputs(family)
    whole = inputs["input_ids"].clone()
    whole[:, :-3] = -100
    few = whole[:, -4:]
    long, short = (model(inputs | {"labels": labels}, "third") for labels in (whole, few))
    assert short.logits.shape[1] == 4 < long.logits.shape[1]
    torch.testing.assert_close(short.logits, long.logits[:, -4:])
    torch.testing.assert_close(short.loss, long.loss)


def test_recomputed_layers_do_not_pile_up_in_the_record() -> None:
    def live_after_backward(checkpointing: bool) -> int:
        model, inputs, live = grown(), make_inputs(), []
        model.grow("fifth", {1: 2, 3: 1}, rank=8, lora_alpha=16, seed=9)
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        out = model(inputs | {"labels": inputs["input_ids"]}, "fifth", record=True, use_cache=False)
        # When the first layer's gradients come, all layers behind it have been recomputed.
        weight = model.ffns[0].routers.weight
        assert weight is not None
        weight.register_hook(lambda _: live.append(usages()))
        (out.loss + out.balance_loss).backward()
        return int(live[0])

    def usages() -> int:
        gc.collect()
        return sum(type(o) is Usage for o in gc.get_objects())

    assert live_after_backward(checkpointing=True) <= live_after_backward(checkpointing=False) + 1


@pytest.mark.parametrize("attention", [0, 2])
def test_a_mixed_training_batch_trains_the_task_being_learned(attention: int) -> None:
    model, inputs = grown(attention=attention), make_inputs()
    parameters = model.grow("fifth", {0: 1}, rank=8, lora_alpha=16, seed=9)
    randomise(model, seed=3)
    logits = model(inputs, ["first", "fifth", BASE]).logits
    logits[0].sum().backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in parameters)
    logits[1].sum().backward()
    assert all(p.grad is not None for p in parameters)
    with torch.no_grad():
        torch.testing.assert_close(
            logits[1], model(inputs, "fifth").logits[1], rtol=1e-5, atol=1e-5
        )


def test_bf16_runs_the_same_code_and_leaves_the_locator_exact() -> None:
    model, inputs = grown(locator=SMALL), make_inputs()
    tasks = ["first", "second", "fourth"]
    with torch.no_grad():
        exact = model(inputs, tasks).logits
    model.to(torch.bfloat16)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with torch.no_grad():
        rounded = model(inputs, tasks).logits
    assert rounded.dtype == torch.bfloat16
    # A rounded router may choose another expert for a token now and then: compare the whole.
    alike = torch.nn.functional.cosine_similarity(rounded.float().flatten(), exact.flatten(), dim=0)
    assert alike > 0.95
    assert model.locate(inputs).scores.dtype == torch.float32
    assert model.generate(inputs, tasks, max_new_tokens=3).sequences.shape[0] == 3
    parameters = model.grow("fifth", {0: 2, 3: 1}, rank=8, lora_alpha=8, seed=0)
    randomise(model, seed=3)
    model(inputs | {"labels": inputs["input_ids"]}, "fifth").loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in parameters)


@torch.no_grad()
def test_all_tensors_follow_the_model_to_another_device() -> None:
    model = grown(attention=2)
    model.grow("fifth", {0: 1}, rank=8, lora_alpha=16, seed=9)
    model.to("meta")
    assert all(t.device.type == "meta" for t in (*model.parameters(), *model.buffers()))
    assert model.device.type == "meta"


@pytest.mark.parametrize(("gates", "attention"), [("renormalized", 0), ("residual", 2)])
@torch.no_grad()
def test_a_log_of_primitives_rebuilds_the_model_bit_for_bit(gates: Any, attention: int) -> None:
    def empty() -> GrowingVLM:
        return GrowingVLM(make_base(), gates=gates, attention=attention, locator=SMALL)

    writer, at_once, one_by_one, prefix = (empty() for _ in range(4))
    log = [learn(writer, task, locator=True) for task in STREAM]
    inputs = make_inputs(batch=4)
    at_once.append(*log)
    for primitive in log:
        one_by_one.append(primitive)
    prefix.append(*log[:2])
    mixed = ["first", "fourth", BASE, "second"]
    for reader in (at_once, one_by_one):
        assert reader.tasks == tuple(STREAM)
        for tasks in (*STREAM, mixed):
            assert torch.equal(reader(inputs, tasks).logits, writer(inputs, tasks).logits)
        assert torch.equal(reader.locate(inputs).scores, writer.locate(inputs).scores)
    assert torch.equal(prefix(inputs, "second").logits, writer(inputs, "second").logits)
    added = sum(log[1].parameter_counts().values())
    assert added == sum(t.numel() for part in log[1].parts().values() for t in part.values())


def test_growing_starts_from_given_weights_and_else_changes_nothing() -> None:
    model, inputs = grown(), make_inputs()
    with torch.no_grad():
        base = model(inputs, BASE).logits
        model.grow("fresh", {0: 1, 1: 1}, rank=8, lora_alpha=8, seed=1)
        # Old experts take part through the new router, so only new experts are silent: check B.
        linears = [m for f in model.ffns[:2] for m in f.maps.values()]
        assert all(m.B is not None and not m.B.any() for m in linears)
        model.discard()
        source = model.ffns[0].expert(2)
        router = {"layers.0": torch.randn(6, WIDTH).to(DEVICE)}
        model.grow("copy", {0: 1}, rank=8, lora_alpha=8, seed=1, init=source | router)
        name = next(iter(model.ffns[0].maps))
        A = model.ffns[0].maps[name].A
        assert A is not None
        assert torch.equal(A, source[f"layers.0.{name}.A"][0])
        assert model.ffns[0].routers.weight is not None
        assert torch.equal(model.ffns[0].routers.weight, router["layers.0"])
        model.discard()
        assert torch.equal(model(inputs, BASE).logits, base)
        assert not [p for p in model.parameters() if p.requires_grad]


def test_every_seed_has_its_own_weights_whatever_the_global_state() -> None:
    def weights(seed: int, state: int) -> list[Tensor]:
        torch.manual_seed(state)
        model = GrowingVLM(make_base())
        torch.manual_seed(state)
        return [p.detach() for p in model.grow("t", {0: 2}, rank=4, lora_alpha=4, seed=seed)]

    same = zip(weights(1, 0), weights(1, 5), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(weights(1, 0)[0], weights(2, 0)[0])


def test_the_fingerprint_tells_bases_apart_but_not_dtypes() -> None:
    base = make_base()
    digest = fingerprint(base)
    assert digest == fingerprint(make_base())
    assert digest != fingerprint(make_base(seed=1))
    assert fingerprint(make_base().bfloat16()) == digest
    with torch.no_grad():
        base.lm_head.weight[3, 3] += 1
    assert fingerprint(base) != digest
    model = grown()
    assert model.base_digest == digest


def test_whose_experts_work_is_told_by_the_gates_of_all_layers() -> None:
    model, inputs = grown(), make_inputs(batch=3)
    shares = model.whose_experts(inputs, "fourth")
    usage = {u.layer: u.gates for u in model(inputs, "fourth", record=True).usage}
    owners = {layer: [] for layer in range(4)}  # type: dict[int, list[int]]
    for task, name in enumerate(STREAM):
        for layer, count in STREAM[name].items():
            owners[layer] += [task] * count
    expected = torch.zeros(len(STREAM))
    for layer, of in owners.items():
        for gate, task in zip(usage[layer], of, strict=False):
            expected[task] += gate
    torch.testing.assert_close(shares, expected / expected.sum())
    assert shares[2] == 0, "it has no expert"
    first = model.whose_experts(inputs, "first")
    assert first.tolist() == [1, 0, 0, 0], "there was no other then"
    assert model.whose_experts(inputs, BASE).tolist() == [0, 0, 0, 0]
    at_once = GrowingVLM(make_base())  # tasks that come together are told apart, too
    at_once.append(*(learn(each, task) for each in [GrowingVLM(make_base())] for task in STREAM))
    assert torch.equal(at_once.whose_experts(inputs, "fourth"), shares)
