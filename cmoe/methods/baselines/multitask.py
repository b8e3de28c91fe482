"""One LoRA that learns all tasks at once: a bound."""

from __future__ import annotations

from collections.abc import Sequence

from cmoe.data.samples import Sample
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.method import Trainer
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE


class JointLoRA(SequentialLoRA):
    """One LoRA for all tasks, learned at once, as if there were no stream: an upper bound.

    The first primitive has it all, and those behind it are empty.
    """

    name = "multitask"
    joint = True

    def append(self, *primitives: Primitive) -> None:
        if primitives and not self.tasks:
            self._load(primitives[0].experts)
        self.tasks += tuple(p.task for p in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        if not self.tasks:
            return super().learn(task, samples, trainer)
        self.tasks += (task,)
        return self._primitive(task, {})

    def answerer(self, stage: int, task: int) -> int:
        return 0 if task <= stage else BASE

    def _take(self, task: int) -> None:
        """The one adapter is always there."""
