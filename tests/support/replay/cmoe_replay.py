"""Experience replay: one LoRA that is trained on some samples of every earlier task again."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch

from cmoe import register_method
from cmoe.data.samples import Sample
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.settings import LoRAConfig

ABOUT = "one LoRA that trains on samples of earlier tasks again"


@dataclass(frozen=True)
class ReplayConfig:
    samples: int = 8


@register_method("replay", about=ABOUT, sections={"lora": LoRAConfig, "replay": ReplayConfig})
class Replay(SequentialLoRA):
    def __init__(self, base, seed, lora, replay):
        super().__init__(base, lora, seed)
        self.size, self.kept = replay.samples, []

    def append(self, *primitives):
        super().append(*primitives)
        for primitive in primitives:
            for *texts, images in json.loads(bytes(primitive.memory["rows"].tolist())):
                self.kept.append(Sample(*texts, images=tuple(map(Path, images))))

    def learn(self, task, samples, trainer):
        primitive = super().learn(task, [*samples, *self.kept], trainer)
        chosen = Random(task).sample([*samples], self.size)
        rows = json.dumps([(s.id, s.text, s.answer, [*map(str, s.images)]) for s in chosen])
        self.kept += chosen
        return replace(primitive, memory={"rows": torch.tensor([*rows.encode()]).byte()})
