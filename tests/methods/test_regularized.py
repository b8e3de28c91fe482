"""EWC and LwF: each term of the loss against its equation. What all rivals share: test_peers.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.devices import DEVICE
from support.plain_trainer import PlainTrainer, make_batch, make_samples
from support.tiny_models import make_base
from torch import Tensor, nn

from cmoe.data.samples import Sample
from cmoe.methods.ewc import EWC, fisher
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.lwf import LwF, distillation
from cmoe.methods.settings import EWCConfig, LoRAConfig, LwFConfig
from cmoe.modeling.primitive import Primitive

CONFIG = LoRAConfig(rank=4, lora_alpha=8)
TASKS = ("one", "two", "three")


def make_ewc(weight: float = 400.0, samples: int = 5, seed: int = 0) -> EWC:
    return EWC(make_base(), CONFIG, EWCConfig(weight, samples), seed)


def make_lwf(weight: float = 1.0, temperature: float = 2.0) -> LwF:
    return LwF(make_base(), CONFIG, LwFConfig(weight, temperature), 0)


def make_lora() -> SequentialLoRA:
    return SequentialLoRA(make_base(), CONFIG, 0)


def samples_of(task: str, count: int = 8) -> list[Sample]:
    return make_samples(count, start=100 * TASKS.index(task))


def learn(method: SequentialLoRA, task: str) -> tuple[Primitive, PlainTrainer]:
    trainer = PlainTrainer(method.module)
    return method.learn(task, samples_of(task), trainer), trainer


def logits_of(method: SequentialLoRA, inputs: Mapping[str, Tensor]) -> Tensor:
    shown = {name: t for name, t in inputs.items() if name != "labels"}
    logits: Tensor = method.module(**shown).logits
    return logits


def answer_loss(logits_bsv: Tensor, labels_bs: Tensor) -> Tensor:
    """Cross-entropy, summed over answer tokens."""
    return F.cross_entropy(
        logits_bsv[:, :-1].flatten(0, 1), labels_bs[:, 1:].flatten(), reduction="sum"
    )


def same_training(a: Primitive, b: Primitive) -> bool:
    assert a.experts.keys() == b.experts.keys()
    return all(torch.equal(a.experts[name], t) for name, t in b.experts.items())


# A weight of 0


@pytest.mark.parametrize("make", [lambda: make_ewc(0.0), lambda: make_lwf(0.0)], ids=["ewc", "lwf"])
def test_without_its_weight_a_term_changes_nothing(make: Callable[[], SequentialLoRA]) -> None:
    method, plain = make(), make_lora()
    for task in TASKS:
        assert same_training(learn(method, task)[0], learn(plain, task)[0])


@pytest.mark.parametrize("make", [lambda: make_ewc(1e6), lambda: make_lwf(1e6)], ids=["ewc", "lwf"])
def test_the_first_task_has_no_term_and_the_second_has(make: Callable[[], SequentialLoRA]) -> None:
    method, plain = make(), make_lora()
    assert same_training(learn(method, "one")[0], learn(plain, "one")[0])
    assert not same_training(learn(method, "two")[0], learn(plain, "two")[0])


# EWC: importances


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


# EWC: the penalty


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


# LwF


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
