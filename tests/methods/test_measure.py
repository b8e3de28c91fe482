"""What is measured before a task is learned, worked out here a second time from the logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.tiny_cmoe import EXPERTS, LOCATOR, PROBE, answer_loss, learn, make_method
from support.tiny_models import LAYERS, make_base
from torch import Tensor

from cmoe.modeling.growing import GrowingVLM


@pytest.mark.parametrize("near", [True, False])
def test_a_task_builds_on_one_that_answers_its_samples_better_than_probes(near: bool) -> None:
    """By the loss on samples that train nothing, worked out here from the logits."""
    experts = replace(EXPERTS, gates="residual", attention=2, build_on="nearest")
    teacher = make_method(experts, replace(PROBE, rule="gain"))
    first, _ = learn(teacher, "one")
    assert first.builds_on is None, "there is nothing to build on"
    noise = torch.Generator().manual_seed(1)
    if not near:  # experts that answer anything wrong
        loud = {name: torch.randn(t.shape, generator=noise) for name, t in first.experts.items()}
        first = replace(first, experts=loud)
    method = make_method(experts, replace(PROBE, rule="gain", steps=1 if near else 6))
    method.append(first)
    with torch.no_grad():  # another task, which builds on none
        other = GrowingVLM(make_base(), gates="residual", attention=2, locator=LOCATOR)
        other.append(first)
        for p in other.grow("other", {0: 1, 1: 1}, rank=4, lora_alpha=8, seed=1):
            p.add_(torch.randn(p.shape, generator=noise).to(p))
    second = other.commit(first.locator)
    method.append(second)
    primitive, trainer = learn(method, "two")
    decision, few = primitive.decision, trainer.seen["nearest"]
    assert few == trainer.seen["loss gain"]
    losses = {task: answer_loss(method.module, task, few) for task in ("one", "other")}
    probes = trainer.ended["probe"]
    probed = GrowingVLM(make_base(), gates="residual", attention=2, locator=LOCATOR)
    probed.append(first, second)
    counts = dict.fromkeys(range(LAYERS), PROBE.experts)
    init = {**probes.experts, **probes.routers}
    probed.grow("two", counts, rank=4, lora_alpha=8, seed=0, init=init)
    losses[""] = answer_loss(probed, "two", few)
    assert decision["losses"] == pytest.approx(losses, abs=2e-5)
    best = min(("one", "other"), key=losses.__getitem__)
    assert near == (losses[best] < losses[""]), losses
    assert primitive.builds_on == decision["builds_on"] == (best if near else None)
    assert trainer.began["train"].builds_on == primitive.builds_on
    again = [phase for phase in trainer.seen if phase.endswith(", built on")]
    assert len(again) == (3 if near else 0), "probes are trained and measured on top of it"
    for ffn in method.module.ffns:
        own = tuple(range(2 if ffn.layer < 2 else 1, len(ffn.frozen)))
        below = ffn.routers.always_on(method.tasks.index(best)) if near else ()
        assert ffn.routers.always_on(2) == (*below, *own)


def test_gains_are_falls_of_the_loss_with_their_standard_errors() -> None:
    method = make_method(replace(EXPERTS, gates="residual"), replace(PROBE, rule="gain"))
    first, _ = learn(method, "one")
    primitive, trainer = learn(method, "two")
    probes, few = trainer.ended["probe"], trainer.seen["loss gain"]

    def losses(*counts: int) -> Tensor:
        """By sample, of a model with the first probes of each layer."""
        model = GrowingVLM(make_base(), top_k=EXPERTS.top_k, gates="residual", locator=LOCATOR)
        model.append(first)
        init = {n: t[: counts[int(n.split(".")[1])]] for n, t in probes.experts.items()}
        init |= {n: t[: 1 + counts[int(n.split(".")[1])]] for n, t in probes.routers.items()}
        experts = dict(enumerate(counts))
        model.grow("two", experts, rank=EXPERTS.rank, lora_alpha=8, seed=99, init=init)
        return torch.tensor([answer_loss(model, "two", [sample]) for sample in few]).double()

    every = losses(2, 2, 2, 2)
    # All answers have as many tokens: the mean over samples is the mean over tokens.
    one_less, none = losses(2, 1, 2, 2), losses(2, 0, 2, 2)
    expected = [none - every, one_less - every]
    for (value, error), falls in zip(primitive.decision["gains"][1], expected, strict=True):
        assert value == pytest.approx(falls.mean().item(), abs=1e-5)
        assert error == pytest.approx(falls.std().item() / len(few) ** 0.5, abs=1e-5)
    value, error = primitive.decision["whole_gain"]
    falls = losses(0, 0, 0, 0) - every
    assert (value, error) == pytest.approx(
        (falls.mean().item(), falls.std().item() / len(few) ** 0.5), abs=1e-5
    )
