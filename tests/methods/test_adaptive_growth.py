"""On the mini base: what was learned before adds nothing, under any name, and a stranger does.

Three seeds of a stream that is real but for its length: names of another task's very samples, a
part of them, and a task that has nothing to do with either.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from support.plain_trainer import PlainTrainer
from torch import Tensor

from cmoe.data.batches import Collator
from cmoe.data.coin import read_tasks
from cmoe.data.samples import Sample
from cmoe.data.settings import DataConfig
from cmoe.methods.cmoe import CMoE
from cmoe.methods.settings import ExpertsConfig, ProbeConfig
from cmoe.mini.tasks import write_mini_coin
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE, LocatorConfig

EXPERTS = ExpertsConfig(rank=6, lora_alpha=12, attention=6, usage_samples=8)
PROBE = ProbeConfig(fraction=0.2, steps=30, gain_samples=48)
LOCATOR = LocatorConfig(layer=1, pooling="mean_text", steps=5)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sequence[Sample]]:
    root = tmp_path_factory.mktemp("mini")
    write_mini_coin(root, train=320, test=1)
    read = read_tasks(DataConfig(str(root), tasks=("VizWiz", "ScienceQA")), 0)
    return {task.name: task.train for task in read}


class Lessons:
    """A method on the mini base that learns tasks, each by a few steps."""

    def __init__(self, seed: int) -> None:
        base, processor = load_base(str(MINI_BASE))
        self.collator = Collator(processor, 512, 8)
        self.method = CMoE(base, EXPERTS, PROBE, LOCATOR, seed)

    def collate(self, samples: Sequence[Sample], *, answers: bool) -> dict[str, Tensor]:
        return self.collator.training(samples) if answers else self.collator.prompts(samples)

    def learn(self, name: str, samples: Sequence[Sample], steps: int) -> list[int]:
        """The layers in which a task grew."""
        trainer = PlainTrainer(
            self.method.module, steps=steps, learning_rate=0.006, collate=self.collate
        )
        primitive = self.method.learn(name, samples, trainer)
        return [int(layer) for layer in primitive.decision["experts"]]

    @torch.no_grad()
    def loss(self, name: str, samples: Sequence[Sample]) -> float:
        inputs = self.collator.training(samples)
        return float(self.method.module(inputs, name).loss)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_was_learned_before_adds_no_expert_and_a_stranger_does(
    seed: int, tasks: dict[str, Sequence[Sample]]
) -> None:
    lessons, samples = Lessons(seed), tasks["VizWiz"]
    assert len(lessons.learn("first", samples, 150)) == 6
    own = lessons.loss("first", samples[:64])
    assert own < 1.0, "it was learned"
    for name, rows in (("again", samples), ("part", samples[:160])):
        assert lessons.learn(name, rows, 10) == [], "its router alone"
        assert lessons.loss(name, samples[:64]) < own + 0.1, "and nothing is lost"
    assert lessons.learn("stranger", tasks["ScienceQA"], 1)
