"""EWC: importances and the penalty against their equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.devices import DEVICE
from support.plain_trainer import PlainTrainer, make_batch, make_samples
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
from torch import Tensor, nn

from cmoe.data.samples import Sample
from cmoe.methods.baselines.ewc import EWC, fisher
from cmoe.methods.settings import EWCConfig
from cmoe.modeling.primitive import Primitive


def make_ewc(weight: float = 400.0, samples: int = 5, seed: int = 0) -> EWC:
    return EWC(make_base(), CONFIG, EWCConfig(weight, samples), seed)


# Its weight


def test_without_its_weight_penalty_changes_nothing() -> None:
    assert learns_as_lora(make_ewc(0.0)) == [True, True, True]


def test_the_first_task_has_no_penalty_and_the_second_has() -> None:
    assert learns_as_lora(make_ewc(1e6), TASKS[:2]) == [True, False]


# Importances


class SoftmaxRegression(nn.Module):
    """p(k | x) ~ exp(W_k x + b_k), for every token of a sample on its own."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W = nn.Parameter(torch.randn(classes, width, generator=generator))
        self.b = nn.Parameter(torch.randn(classes, generator=generator))

    def forward(self, x: Tensor, labels: Tensor, num_items_in_batch: float, **_: Any) -> Any:
        loss = F.cross_entropy(
            (x @ self.W.T + self.b).flatten(0, 1), labels.flatten(), reduction="sum"
        )
        return SimpleNamespace(loss=loss / num_items_in_batch)


Answered = tuple[list[list[float]], list[int]]  # of one sample: a row x and a class y per token


def fisher_of(module: SoftmaxRegression, data: Sequence[Answered]) -> dict[str, Tensor]:
    def collate(samples: Sequence[Sample], *, answers: bool) -> dict[str, Tensor]:
        (number,) = (int(s.id) for s in samples)
        assert answers
        x, y = data[number]
        return {"x": torch.tensor([x]), "labels": torch.tensor([y])}

    # In another order than the module's.
    named = {"b": module.b, "W": module.W}
    trainer = PlainTrainer(module, collate=collate)
    found = fisher(module, named, make_samples(len(data)), trainer)
    assert list(trainer.seen) == ["fisher"]
    assert list(found) == ["b", "W"]
    assert all(
        found[n].shape == p.shape and found[n].dtype == torch.float32 for n, p in named.items()
    )
    assert not any(p.grad is not None for p in module.parameters())
    return found


def test_importance_is_the_mean_square_of_a_samples_gradient() -> None:
    """-log p(y|x) has the gradient (p_k - [y = k]) x_i, the sum of its tokens' for a sample."""
    classes, width = 4, 3
    module = SoftmaxRegression(classes, width)
    rng = np.random.default_rng(0)
    data: list[Answered] = [
        (rng.normal(size=(n, width)).tolist(), rng.integers(classes, size=n).tolist())
        for n in (1, 3, 2, 1, 4)
    ]
    W, b = module.W.detach().double().numpy(), module.b.detach().double().numpy()
    wanted_W, wanted_b = np.zeros((classes, width)), np.zeros(classes)
    for x, y in data:
        gradient_W, gradient_b = np.zeros((classes, width)), np.zeros(classes)
        for x_t, y_t in zip(np.array(x), y, strict=True):
            p = np.exp(W @ x_t + b)
            p /= p.sum()
            for k in range(classes):
                gradient_b[k] += p[k] - (y_t == k)
                gradient_W[k] += (p[k] - (y_t == k)) * x_t
        wanted_W += gradient_W**2 / len(data)
        wanted_b += gradient_b**2 / len(data)
    found = fisher_of(module, data)
    np.testing.assert_allclose(found["W"], wanted_W, rtol=1e-4)
    np.testing.assert_allclose(found["b"], wanted_b, rtol=1e-4)


def test_importance_over_the_models_own_answers_is_their_variance() -> None:
    """E_y[(p_k - [y = k])^2] = p_k (1 - p_k): labels as often as the model says make it exact."""
    p, x = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8]), torch.tensor([2.0, -1.0, 0.0])
    module = SoftmaxRegression(4, 3)
    with torch.no_grad():
        module.W.zero_()
        module.W[:, 0] = p.log() / x[0]
        module.b.zero_()
    found = fisher_of(module, [([x.tolist()], [y]) for y in (0, 0, 0, 0, 1, 1, 2, 3)])
    variance = p * (1 - p)
    torch.testing.assert_close(found["b"], variance)
    torch.testing.assert_close(found["W"], variance.unsqueeze(1) * x.square())


def test_importances_are_measured_on_what_was_learned_where_it_ended() -> None:
    method = make_ewc(samples=5)
    primitive, trainer = learn(method, "one")
    shown = trainer.seen["fisher"]
    assert len({s.id for s in shown}) == 5
    assert {s.id for s in shown} <= {s.id for s in samples_of("one")}
    parameters = method.trained()
    wanted = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for sample in shown:
        inputs = make_batch([sample], answers=True)
        loss = answer_loss(logits_of(method, inputs), inputs["labels"])
        for name, g in zip(
            wanted, torch.autograd.grad(loss, list(parameters.values())), strict=True
        ):
            wanted[name] += g.square() / len(shown)
    assert primitive.memory.keys() == wanted.keys()
    for name, F_t in wanted.items():
        torch.testing.assert_close(
            primitive.memory[name].to(DEVICE), F_t, rtol=1e-3, atol=1e-5 * F_t.max().item()
        )
    assert any(F_t.max() > 1e-2 for F_t in wanted.values())


def test_importances_take_no_more_samples_than_there_are_and_others_with_another_seed() -> None:
    def shown(samples: int, seed: int) -> list[str]:
        _, trainer = learn(make_ewc(samples=samples, seed=seed), "one")
        return [s.id for s in trainer.seen["fisher"]]

    assert sorted(shown(100, 0)) == sorted(s.id for s in samples_of("one"))
    assert shown(4, 0) == shown(4, 0)
    assert set(shown(4, 0)) != set(shown(4, 1))


# The penalty


class Tasks:
    """Random ends of tasks and importances, some of which are 0, as primitives and as numbers."""

    def __init__(self, count: int) -> None:
        (like, _), rng = learn(make_ewc(), "one"), torch.Generator().manual_seed(0)
        stored = {name: name.replace(".default.", ".") for name in like.memory}
        assert set(stored.values()) == set(like.experts)
        self.primitives: list[Primitive] = []
        self.ends: list[dict[str, Tensor]] = []
        self.importances: list[dict[str, Tensor]] = []
        never = {n: torch.rand(t.shape, generator=rng) < 0.1 for n, t in like.memory.items()}
        for index in range(count):
            end, importance = {}, {}
            for name, t in like.memory.items():
                end[name] = torch.randn(t.shape, generator=rng)
                some = torch.rand(t.shape, generator=rng) * (
                    torch.rand(t.shape, generator=rng) < 0.7
                )
                importance[name] = (some * 10.0 ** (index - 1)).masked_fill(never[name], 0.0)
            self.ends.append({n: t.double().to(DEVICE) for n, t in end.items()})
            self.importances.append({n: t.double().to(DEVICE) for n, t in importance.items()})
            weights = {stored[name]: t for name, t in end.items()}
            self.primitives.append(
                Primitive(f"task-{index}", 4, 8, weights, {}, {}, memory=importance)
            )

    def penalty(self, w: Mapping[str, Tensor]) -> float:
        """The sum over tasks that EWC is, written down."""
        terms = zip(self.importances, self.ends, strict=True)
        return sum(
            float((F_t[n] * (w[n].double() - w_t[n]) ** 2).sum()) for F_t, w_t in terms for n in w
        )

    def gradient(self, name: str, w: Tensor) -> Tensor:
        terms = zip(self.importances, self.ends, strict=True)
        return sum(
            (2 * F_t[name] * (w.double() - w_t[name]) for F_t, w_t in terms), torch.zeros(())
        )

    def scale(self, name: str) -> Tensor:
        """What a gradient is made of, without signs: its rounding is that of this."""
        terms = zip(self.importances, self.ends, strict=True)
        return sum((2 * F_t[name] * (w_t[name].abs() + 1) for F_t, w_t in terms), torch.zeros(()))


@torch.no_grad()
def penalty_of(method: EWC) -> float:
    return float(method.penalty())


@torch.no_grad()
def move(method: EWC, seed: int) -> dict[str, Tensor]:
    """Put all weights somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    for p in method.trained().values():
        p.copy_(torch.randn(p.shape, generator=generator))
    return {name: p.detach().clone() for name, p in method.trained().items()}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_penalty_is_the_sum_over_tasks_but_for_a_constant(count: int) -> None:
    tasks, method = Tasks(count), make_ewc()
    method.append(*tasks.primitives)
    apart = []
    for seed in range(3):
        w = move(method, seed)
        found = method.penalty()
        assert isinstance(found, Tensor)
        apart.append((found.item(), tasks.penalty(w)))
        parameters = method.trained()
        gradients = torch.autograd.grad(found, list(parameters.values()))
        for (name, p), g in zip(parameters.items(), gradients, strict=True):
            error = (g.double() - tasks.gradient(name, p.detach())).abs()
            assert (error <= 1e-5 * tasks.scale(name)).all()
    for found_, wanted in apart[1:]:
        assert found_ - apart[0][0] == pytest.approx(wanted - apart[0][1], rel=1e-3)
    if count == 1:
        assert apart[0][0] == pytest.approx(apart[0][1], rel=1e-5), "one task has no constant"


def test_where_nothing_is_important_nothing_is_held() -> None:
    tasks, method = Tasks(2), make_ewc()
    nothing = {name: torch.zeros_like(t) for name, t in tasks.primitives[0].memory.items()}
    first, second = tasks.primitives
    method.append(Primitive("none", 4, 8, first.experts, {}, {}, memory=nothing))
    move(method, 0)
    assert penalty_of(method) == 0
    method.append(second)
    w = move(method, 1)
    F_t, w_t = tasks.importances[1], tasks.ends[1]
    wanted = sum(float((F_t[n] * (w[n].double() - w_t[n]) ** 2).sum()) for n in w)
    assert penalty_of(method) == pytest.approx(wanted, rel=1e-5)


def test_the_optimum_is_between_the_tasks_as_their_curvatures_say() -> None:
    """For L = h/2 (w - a)^2: w* = (h a + lambda sum F_t w_t) / (h + lambda sum F_t)."""
    tasks, h, weight = Tasks(3), 0.7, 30.0
    method = make_ewc(weight)
    method.append(*tasks.primitives)
    parameters = method.trained()
    generator = torch.Generator().manual_seed(5)
    a = {
        name: torch.randn(p.shape, generator=generator).double().to(DEVICE)
        for name, p in parameters.items()
    }
    curvature = {}
    with torch.no_grad():
        for name, p in parameters.items():
            terms = list(zip(tasks.importances, tasks.ends, strict=True))
            pull = sum((weight * F_t[name] * w_t[name] for F_t, w_t in terms), h * a[name])
            curvature[name] = sum((weight * F_t[name] for F_t, _ in terms), torch.tensor(h))
            p.copy_(pull / curvature[name])

    def forward(**inputs: Any) -> Any:
        assert inputs == {"num_items_in_batch": 7.0}
        away = ((p.double() - a[name]).square().sum() for name, p in parameters.items())
        return SimpleNamespace(loss=h / 2 * sum(away))

    loss = method.loss(forward, {}, 7.0)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    for name, g in zip(parameters, gradients, strict=True):
        # A Newton step from here leads nowhere.
        assert (g.double() / curvature[name]).abs().max() < 1e-5


def test_a_penalty_holds_what_the_first_task_needs() -> None:
    """The heavier it is, the less is left of the way that free weights would go."""
    free, held = make_ewc(0.0), make_ewc(1e4)
    moved = []
    for method in (free, held):
        first, _ = learn(method, "one")
        before = {name: p.detach().clone() for name, p in method.trained().items()}
        learn(method, "two")
        way = [
            (first.memory[name].to(DEVICE) * (p - before[name]).square()).sum()
            for name, p in method.trained().items()
        ]
        moved.append(float(torch.stack(way).detach().sum()))
    assert moved[1] < 0.5 * moved[0]


def test_a_penalty_that_was_taken_up_again_is_the_same_to_the_bit() -> None:
    stream, resumed = make_ewc(), make_ewc()
    assert penalty_of(stream) == 0
    log = []
    for task in TASKS:
        primitive, _ = learn(stream, task)
        log.append(primitive)
    resumed.append(log[0])
    resumed.append(*log[1:])
    for seed in range(2):
        move(stream, seed)
        move(resumed, seed)
        found = penalty_of(stream)
        assert found == penalty_of(resumed)
        assert found > 0
