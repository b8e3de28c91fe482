"""O-LoRA: what answers, and the penalty, against their equations and against PEFT's own sum."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from support.devices import DEVICE
from support.plain_trainer import PlainTrainer, make_batch, make_samples
from support.rivals import CONFIG, TASKS, adapted, answered, answers, merged, samples_of
from support.sequential_adapters import answer_loss, learns_as_lora, logits_of
from support.tiny_models import make_base, make_inputs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cmoe.methods.baselines.olora import OLoRA
from cmoe.methods.settings import OLoRAConfig
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE

SCALE = CONFIG.lora_alpha / CONFIG.rank


def make_olora(weight: float = 0.5) -> OLoRA:
    return OLoRA(make_base(), CONFIG, OLoRAConfig(weight), 0)


def stream(method: OLoRA, steps: int = 3) -> tuple[list[Primitive], PlainTrainer]:
    """The tasks' primitives, and the trainer of the last."""
    log = []
    for task in TASKS:
        trainer = PlainTrainer(method.module, steps=steps)
        log.append(method.learn(task, samples_of(task), trainer))
    return log, trainer


def overlap(log: Sequence[Primitive]) -> float:
    """sum_i sum |A_i A_t^T| of the last task with those before it, number by number."""
    *earlier, latest = map(adapted, log)
    total = 0.0
    for pairs in earlier:
        for name, (A_i, _) in pairs.items():
            for row in A_i:
                for new in latest[name][0]:
                    total += abs(float((row.double() * new.double()).sum()))
    return total


# What answers


@torch.no_grad()
def test_the_sum_of_all_tasks_pairs_answers() -> None:
    """W + s sum_t B_t A_t, merged into an untouched base."""
    method = make_olora()
    with torch.enable_grad():
        log, _ = stream(method)
    pairs = [adapted(primitive) for primitive in log]
    products = {
        n: SCALE * sum((p[n][1] @ p[n][0] for p in pairs), torch.tensor(0)) for n in pairs[0]
    }
    base = merged(products)
    found, wanted = answers(method, 2), answered(base.generate, **make_inputs())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[1], answers(method, BASE)[1], atol=0.1)
    # As do adapters of PEFT that work together.
    names = [n.removeprefix("base_model.model.") for n in products]
    settings = LoraConfig(r=CONFIG.rank, lora_alpha=CONFIG.lora_alpha, target_modules=names)
    peft = get_peft_model(make_base(), settings, adapter_name=TASKS[0])
    for task in TASKS[1:]:
        peft.add_adapter(task, settings)
    for primitive in log:
        set_peft_model_state_dict(peft, dict(primitive.experts), adapter_name=primitive.task)
    peft.base_model.set_adapter(list(TASKS))
    inputs = make_inputs()
    method._take(2)
    with method._at_work(inputs):
        mine = method.module(**inputs).logits
    torch.testing.assert_close(mine, peft(**inputs).logits, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_operations_are_those_that_torch_counts() -> None:
    method, inputs = make_olora(), make_inputs()

    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            method.module(**inputs)
        return int(counter.get_total_flops())

    with torch.enable_grad():
        stream(method, steps=1)
    with method._off():
        alone = counted()
    with method._at_work(inputs):
        added = (counted() - alone) / inputs["input_ids"].numel()
    assert method.flops_per_token(2) == pytest.approx(added, rel=0.01)
    assert method.flops_per_token(2) == 3 * method.flops_per_token(0)
    assert method.at_work(2) == {0, 1, 2}


def test_operations_of_training_pass_earlier_adapters_twice_and_the_new_one_thrice() -> None:
    method = make_olora()
    base, pair = method.flops_per_token(BASE), method.flops_per_token(0)
    for task in range(3):
        wanted = 10 * (2 * base + 2 * task * pair + 3 * pair)
        assert method.learning_flops(task, {"train": 10}) == wanted


# What is learned


def test_the_first_task_is_learned_as_by_lora_and_the_next_is_not() -> None:
    assert learns_as_lora(make_olora(1e6), TASKS[:2]) == [True, False]


def test_a_new_task_begins_with_pairs_of_its_own_and_leaves_the_others_alone() -> None:
    method = make_olora()
    log: list[Primitive] = []
    for task in TASKS:
        before = [{n: t.clone() for n, t in p.experts.items()} for p in log]
        trainer = PlainTrainer(method.module, steps=1, learning_rate=0.0)
        log.append(method.learn(task, samples_of(task), trainer))
        for primitive, kept in zip(log, before, strict=False):
            assert all(torch.equal(primitive.experts[n], t) for n, t in kept.items())
    starts = [adapted(primitive) for primitive in log]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        for name, (A, B) in starts[one].items():
            assert not torch.equal(A, starts[other][name][0])
            assert not B.any()
    for pairs in starts:  # uniform, as PEFT draws them, and nn.Linear its weight
        largest = [float(A.abs().max() * A.shape[1] ** 0.5) for A, _ in pairs.values()]
        assert 0.9 < min(largest) <= max(largest) <= 1
        mean_square = [float(A.square().mean() * A.shape[1]) for A, _ in pairs.values()]
        assert sum(mean_square) / len(mean_square) == pytest.approx(1 / 3, rel=0.1)


def test_the_overlap_is_the_sum_over_all_entries() -> None:
    method = make_olora()
    assert method.overlap() == 0
    log, _ = stream(method)
    found = method.overlap()
    assert isinstance(found, Tensor)
    assert found.item() == pytest.approx(overlap(log), rel=1e-5)
    # Its slope in A_t is sum_i sign(A_t A_i^T) A_i, of which nothing reaches an earlier pair.
    found.backward()
    *earlier, latest = map(adapted, log)
    new = method._latest()
    for name, (A_t, _) in latest.items():
        slope = sum(
            ((A_t @ pairs[name][0].T).sign() @ pairs[name][0] for pairs in earlier),
            torch.zeros((), device=DEVICE),
        )
        torch.testing.assert_close(new[name].A.grad, slope, rtol=1e-4, atol=1e-5)
        assert new[name].B.grad is None
    assert not any(t.requires_grad for pair in method._earlier.values() for t in pair)


@torch.no_grad()
def test_the_loss_is_the_answers_and_the_weighed_overlap() -> None:
    method = make_olora(0.25)
    with torch.enable_grad():
        log, trainer = stream(method)
    inputs = make_batch(make_samples(4), answers=True)
    with method._at_work(inputs):
        loss = trainer.losses["train"](method.module, inputs, 10.0)
        plain = answer_loss(logits_of(method, inputs), inputs["labels"]) / 10
    assert loss.item() == pytest.approx(plain.item() + 0.25 * overlap(log), rel=1e-4)


def test_the_penalty_makes_subspaces_orthogonal() -> None:
    free, held = (overlap(stream(make_olora(weight), steps=6)[0]) for weight in (0.0, 1.0))
    assert held < 0.5 * free
