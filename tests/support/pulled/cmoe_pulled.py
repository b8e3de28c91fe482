"""One LoRA that a term of the loss pulls back to where the task before it ended."""

from dataclasses import dataclass

from cmoe import register_method
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.settings import LoRAConfig

ABOUT = "one LoRA that is pulled back to where the task before ended"


@dataclass(frozen=True)
class PullConfig:
    weight: float = 1.0


@register_method(
    "pulled", about=ABOUT, sections={"lora": LoRAConfig, "pull": PullConfig}, whole_weights=True
)
class Pulled(SequentialLoRA):
    name = "pulled"

    def __init__(self, base, seed, lora, pull):
        super().__init__(base, lora, seed)
        self.weight, self.before = pull.weight, {}

    def learn(self, task, samples, trainer):
        if self.tasks:
            self.before = {name: p.detach().clone() for name, p in self.trained().items()}
        return super().learn(task, samples, trainer)

    def loss(self, forward, inputs, tokens):
        now = self.trained()
        way = sum((now[name] - before).square().sum() for name, before in self.before.items())
        return super().loss(forward, inputs, tokens) + self.weight * way
