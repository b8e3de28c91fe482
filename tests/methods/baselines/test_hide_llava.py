"""HiDe-LLaVA: what answers against its equations, merged into untouched bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.devices import DEVICE
from support.plain_trainer import make_batch
from support.rivals import CONFIG, TASKS, adapted, answered, answers, learn, merged, samples_of
from support.tiny_models import IMAGE, LAYERS, WIDTH, make_base, make_inputs, untouched_base
from torch import Tensor

from cmoe.methods.baselines.hide_llava import HiDeLLaVA, pooled_apart
from cmoe.methods.settings import HiDeConfig
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE

SCALE = CONFIG.lora_alpha / CONFIG.rank
TEMPERATURE = 0.05
TOP = f".layers.{LAYERS - 1}."


def make_hide(seed: int = 0) -> HiDeLLaVA:
    return HiDeLLaVA(make_base(), CONFIG, HiDeConfig(TEMPERATURE), seed)


@pytest.fixture(scope="module")
def learned() -> tuple[HiDeLLaVA, list[Primitive]]:
    method = make_hide()
    return method, [learn(method, task) for task in TASKS]


@torch.no_grad()
def embedded(inputs: Mapping[str, Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each sample the means of what enters the decoder, over its picture and over its text."""
    base: Any = untouched_base()
    states: list[Tensor] = []
    base.get_decoder().layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    base(**inputs)
    found = []
    for ids, mask, hidden in zip(
        inputs["input_ids"], inputs["attention_mask"], states[0].double().cpu(), strict=True
    ):
        image = [h.numpy() for i, m, h in zip(ids, mask, hidden, strict=True) if m and i == IMAGE]
        text = [h.numpy() for i, m, h in zip(ids, mask, hidden, strict=True) if m and i != IMAGE]
        found.append((np.mean(image, 0), np.mean(text, 0)))
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def anchors_of(task: str) -> list[np.ndarray]:
    rows = [embedded(make_batch([sample], answers=False))[0] for sample in samples_of(task)]
    return [np.mean([row[modality] for row in rows], 0) for modality in (0, 1)]


def weights_of(inputs: Mapping[str, Tensor], tasks: Sequence[str]) -> np.ndarray:
    """softmax_i((cos(f_image, a_image_i) + cos(f_text, a_text_i)) / 2 / temperature)."""
    anchors = [anchors_of(task) for task in tasks]
    similar = np.array(
        [
            [(cosine(image, a[0]) + cosine(text, a[1])) / 2 for a in anchors]
            for image, text in embedded(inputs)
        ]
    )
    raised = np.exp(similar / TEMPERATURE)
    return raised / raised.sum(1, keepdims=True)


def products_of(log: Sequence[Primitive], weights: Sequence[float]) -> dict[str, Tensor]:
    """What is added to each map for a sample: the product of sums, or in the top the sum."""
    pairs = [adapted(primitive) for primitive in log]
    added = {}
    for name in pairs[0]:
        if TOP in name:
            every = [w * (p[name][1] @ p[name][0]) for w, p in zip(weights, pairs, strict=True)]
            added[name] = SCALE * torch.stack(every).sum(0)
        else:
            A, B = (torch.stack([p[name][part] for p in pairs]).sum(0) for part in (0, 1))
            added[name] = SCALE * (B @ A)
    return added


# What answers


@pytest.mark.parametrize("stage", range(3))
@torch.no_grad()
def test_sums_answer_below_the_last_layer_and_weighed_products_in_it(
    learned: tuple[HiDeLLaVA, list[Primitive]], stage: int
) -> None:
    """Every sample of a batch by weights of its own, also behind its first new token."""
    method, log = learned
    inputs = make_inputs(seed=5)
    found = answered(method.generate, inputs, stage)
    weights = weights_of(inputs, TASKS[: stage + 1])
    for row in range(3):
        base = merged(products_of(log[: stage + 1], weights[row].tolist()))
        wanted = answered(base.generate, **inputs)
        steps = min(len(found), len(wanted))
        assert steps > 2
        for a, b in zip(found[1:steps], wanted[1:steps], strict=True):
            torch.testing.assert_close(a[row], b[row], rtol=1e-3, atol=2e-3)
    if stage:
        assert np.abs(weights[0] - weights[1]).max() > 1e-3


def test_any_stage_that_was_learned_answers(
    learned: tuple[HiDeLLaVA, list[Primitive]],
) -> None:
    method, _ = learned
    stages = [answers(method, stage) for stage in (2, 0, 1, 2, BASE)]
    assert all(torch.equal(a, b) for a, b in zip(stages[0], stages[3], strict=True))
    for one, other in ((0, 1), (0, 2), (1, 2), (0, 4)):
        assert not torch.allclose(stages[one][1], stages[other][1], atol=1e-2)
    assert [method.answerer(2, task) for task in range(4)] == [2, 2, 2, 2]
    assert method.at_work(2) == {0, 1, 2}
    with pytest.raises(ValueError, match="stage 3 isn't learned yet: 3 are"):
        answers(method, 3)


@torch.no_grad()
def test_anchors_are_means_over_the_training_samples(
    learned: tuple[HiDeLLaVA, list[Primitive]],
) -> None:
    for primitive in learned[1]:
        wanted = anchors_of(primitive.task)
        for name, anchor in zip(("image", "text"), wanted, strict=True):
            found = primitive.locator[name]
            assert found.shape == (WIDTH,)
            np.testing.assert_allclose(found, anchor, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_weights_are_the_softmax_of_mean_cosines(
    learned: tuple[HiDeLLaVA, list[Primitive]],
) -> None:
    method, _ = learned
    inputs = make_inputs(seed=7)
    found = method.weights(method._embedded(inputs), 2)
    np.testing.assert_allclose(found.cpu(), weights_of(inputs, TASKS), rtol=1e-3)
    # A task's own training samples are nearest to it in the mean.
    for index, task in enumerate(TASKS):
        batch = make_batch(samples_of(task), answers=False)
        assert method.weights(method._embedded(batch), 2).mean(0).argmax() == index


@torch.no_grad()
def test_without_a_picture_the_text_alone_decides(
    learned: tuple[HiDeLLaVA, list[Primitive]],
) -> None:
    method, log = learned
    ids = torch.tensor([[0, 0, 1, 9, 10], [1, 11, 12, 13, 14]], device=DEVICE)
    hidden = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    config = method._base.config
    found = pooled_apart(hidden, {"input_ids": ids, "attention_mask": (ids != 0).long()}, config)
    assert not found[:, :WIDTH].any()
    torch.testing.assert_close(found[0, WIDTH:], hidden[0, 2:].mean(0))
    torch.testing.assert_close(found[1, WIDTH:], hidden[1].mean(0))
    texts = torch.stack([p.locator["text"] for p in log]).to(DEVICE)
    similar = torch.nn.functional.cosine_similarity(found[:, None, WIDTH:], texts, dim=-1)
    wanted = (similar / 2 / TEMPERATURE).softmax(-1)
    torch.testing.assert_close(method.weights(found, 2), wanted)


# What is learned


def test_a_task_is_learned_by_itself_from_weights_of_its_own() -> None:
    """On nothing but the base, whatever answered before; no two tasks begin alike."""
    stream, alone = make_hide(), make_hide()
    first_answers = []
    for task in TASKS:
        learned = learn(stream, task)
        first_answers.append(answers(stream, 0)[1])
    assert all(torch.equal(a, first_answers[0]) for a in first_answers)
    only = learn(alone, TASKS[-1])
    assert all(torch.equal(learned.experts[name], t) for name, t in only.experts.items())
    first = adapted(stream._log[0])
    for name, (A, _) in adapted(learned).items():
        assert torch.nn.functional.cosine_similarity(A.flatten(), first[name][0].flatten(), 0) < 0.5


def test_operations_are_of_one_fused_adapter_and_of_every_tasks_top(
    learned: tuple[HiDeLLaVA, list[Primitive]],
) -> None:
    method, log = learned
    sizes = {name: A.numel() + B.numel() for name, (A, B) in adapted(log[0]).items()}
    top = sum(size for name, size in sizes.items() if TOP in name)
    below = sum(sizes.values()) - top
    for stage in range(3):
        assert method.flops_per_token(stage) == 2 * (below + (stage + 1) * top)
    base = method.flops_per_token(BASE)
    tokens = {"train": 10, "features": 1000}
    assert method.learning_flops(2, tokens) == 10 * (2 * base + 3 * 2 * (below + top))


def test_features_are_frozen_and_do_not_see_the_decoder() -> None:
    method, untouched = make_hide(), make_hide()
    inputs = make_inputs()
    before = untouched._embedded(inputs)
    learn(method, "one")
    assert torch.equal(method._embedded(inputs), before)
