"""LwF: the distillation against its equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.plain_trainer import make_batch
from support.sequential_adapters import (
    CONFIG,
    TASKS,
    answer_loss,
    learn,
    learns_as_lora,
    logits_of,
    samples_of,
)
from support.tiny_models import make_base
from torch import Tensor

from cmoe.methods.baselines.lwf import LwF, distillation
from cmoe.methods.settings import LwFConfig


def make_lwf(weight: float = 1.0, temperature: float = 2.0) -> LwF:
    return LwF(make_base(), CONFIG, LwFConfig(weight, temperature), 0)


# Its weight


def test_without_its_weight_distillation_changes_nothing() -> None:
    assert learns_as_lora(make_lwf(0.0)) == [True, True, True]


def test_the_first_task_has_no_distillation_and_the_second_has() -> None:
    assert learns_as_lora(make_lwf(1e6), TASKS[:2]) == [True, False]


# The term


def softened(logits_v: np.ndarray[Any, Any], temperature: float) -> np.ndarray[Any, Any]:
    """Probabilities to the power of 1 / T, made to sum to 1 again (equation 3)."""
    p = np.exp(logits_v - logits_v.max())
    p /= p.sum()
    raised = p ** (1 / temperature)
    soft: np.ndarray[Any, Any] = raised / raised.sum()
    return soft


def kept(student_bsv: Tensor, teacher_bsv: Tensor, labels_bs: Tensor, temperature: float) -> float:
    """Equation 2 on the answers, token for token: a token is predicted at the place before it."""
    student, teacher = (t.detach().double().cpu().numpy() for t in (student_bsv, teacher_bsv))
    total = 0.0
    for row, labels in enumerate(labels_bs.tolist()):
        for place in range(1, len(labels)):
            if labels[place] != -100:
                wanted = softened(teacher[row, place - 1], temperature)
                found = softened(student[row, place - 1], temperature)
                total -= float((wanted * np.log(found)).sum())
    return total


def random_logits(seed: int) -> Tensor:
    return 3 * torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(seed))


# An answer in the middle, at the end, and at the very first place, which nothing predicts.
LABELS = torch.tensor(
    [[-100, -100, 4, 0, -100, -100], [-100, -100, -100, -100, 2, 6], [1, 5, -100, 3, -100, 0]]
)
temperatures = pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])


@temperatures
def test_distillation_is_the_cross_entropy_of_softened_answers(temperature: float) -> None:
    student, teacher = random_logits(0), random_logits(1)
    found = distillation(student, teacher, LABELS, temperature)
    assert found.item() == pytest.approx(kept(student, teacher, LABELS, temperature), rel=1e-5)
    half = distillation(student.bfloat16(), teacher.bfloat16(), LABELS, temperature)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(found.item(), rel=0.02)


@temperatures
def test_distillation_pulls_to_the_earlier_answers_and_rests_there(temperature: float) -> None:
    """The gradient is (student - teacher) / T where something is answered, and 0 elsewhere."""
    student, teacher = random_logits(0).requires_grad_(), random_logits(1)
    (gradient,) = torch.autograd.grad(distillation(student, teacher, LABELS, temperature), student)
    wanted = torch.zeros(3, 6, 7)
    for row, labels in enumerate(LABELS.tolist()):
        for place in range(1, 6):
            if labels[place] != -100:
                at = row, place - 1
                p = softened(student[at].detach().double().numpy(), temperature)
                q = softened(teacher[at].double().numpy(), temperature)
                wanted[at] = torch.from_numpy((p - q) / temperature)
    torch.testing.assert_close(gradient, wanted)
    # Where they agree, also where only a constant tells the logits apart, nothing pulls.
    alike = (teacher + torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(distillation(alike, teacher, LABELS, temperature), alike)
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("task", [1, 2])
def test_the_teacher_is_the_adapter_as_the_task_began(task: int) -> None:
    weight, temperature = 3.0, 2.0
    method = make_lwf(weight, temperature)
    for earlier in TASKS[:task]:
        learn(method, earlier)
    # The first batch, and the losses that its training begins with.
    inputs = make_batch(samples_of(TASKS[task], 4), answers=True)
    labels = inputs["labels"]
    tokens = int((labels != -100).sum())
    with torch.no_grad():
        teacher = logits_of(method, inputs)
    _, trainer = learn(method, TASKS[task])
    entropy = kept(teacher, teacher, labels, temperature)
    began = (answer_loss(teacher, labels).item() + weight * entropy) / tokens
    assert trainer.curves["train"][0] == pytest.approx(began, rel=1e-5)
    # Some steps later it is still that, and stays out of the way.
    held = dict(method.module.named_parameters())
    before = {name: p.detach().clone() for name, p in held.items()}
    parameters = list(method.trained().values())
    loss = trainer.losses["train"](method.module, inputs, 10.0)
    student = logits_of(method, inputs)
    assert (student - teacher).abs().max() > 1e-2
    wanted = answer_loss(student, labels).item() + weight * kept(
        student, teacher, labels, temperature
    )
    assert loss.item() == pytest.approx(wanted / 10, rel=1e-5)
    now = dict(method.module.named_parameters())
    assert all(now[name] is p and torch.equal(p, before[name]) for name, p in held.items())
    # Its answers are constants to the gradient.
    answered = labels[:, 1:] != -100
    p, q = (t[:, :-1][answered].softmax(-1).pow(1 / temperature) for t in (student, teacher))
    term = -(q / q.sum(-1, keepdim=True) * (p / p.sum(-1, keepdim=True)).log()).sum()
    explicit = (answer_loss(student, labels) + weight * term) / 10
    gradients = torch.autograd.grad(loss, parameters), torch.autograd.grad(explicit, parameters)
    for found, right in zip(*gradients, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4 * right.abs().max().item())


def test_distillation_keeps_answers_that_training_alone_changes() -> None:
    def drift(method: LwF) -> float:
        learn(method, "one")
        inputs = make_batch(samples_of("two"), answers=True)
        with torch.no_grad():
            before = logits_of(method, inputs)
        learn(method, "two")
        with torch.no_grad():
            after = logits_of(method, inputs)
        own = kept(before, before, inputs["labels"], 1.0)
        return kept(after, before, inputs["labels"], 1.0) - own  # the divergence from before

    assert drift(make_lwf(30.0)) < 0.5 * drift(make_lwf(0.0))
