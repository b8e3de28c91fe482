"""O-LoRA: a LoRA for every task, orthogonal to those before it, and all of them at work at once.

Wang et al. 2023 (arXiv 2310.14152), and their code, github.com/cmnfriend/O-LoRA:

    h = W x + s (sum_{i<t} B_i A_i + B_t A_t) x                    src/peft/tuners/lora.py
    loss = cross-entropy + weight * sum_{i<t} sum |A_i A_t^T|      src/uie_trainer_lora.py

The earlier pairs are frozen, the new one is drawn afresh. The second sum is over all entries of the
products of all adapted maps: absolute values, as the code has it.

Where this differs from the code, and why:

- All linear maps of the decoder are adapted, and sizes are those of `lora`: as for every method
  here. The code adapts PEFT's default maps, the queries' and the values', at rank 8 and scale 4.
- No dropout (theirs is 0.1), and the stream's own optimiser and schedule: as for every method here.
- Their second term, `lamda_2` times the norms of the new pair, isn't there: its default is 0, as
  are its values in the scripts of their three standard orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.baselines.pairs import Pair, beside, pairs_of, stacked
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.method import Forward, Trainer, seed_of, training_flops
from cmoe.methods.settings import LoRAConfig, OLoRAConfig
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OLoRA(SequentialLoRA):
    """A LoRA for every task in a subspace of its own; their sum answers whatever is asked.

    A primitive holds its task's pairs alone. The latest stage answers, with all of them.

    Args:
        base: Frozen, and wrapped in place.
        lora: The size of a task's adapter.
        olora: The penalty.
        seed: Of fresh weights.
    """

    name = "olora"

    def __init__(
        self, base: PreTrainedModel, lora: LoRAConfig, olora: OLoRAConfig, seed: int
    ) -> None:
        super().__init__(base, lora, seed)
        self.olora, self.seed = olora, seed
        self._earlier: dict[str, Pair] = {}  # of each map, all but the latest task's

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"olora": asdict(self.olora)}

    def at_work(self, stage: int) -> set[int]:
        return set(range(stage + 1))

    def flops_per_token(self, task: int) -> int:
        adapter = super().flops_per_token(task)
        return adapter if task == BASE else (task + 1) * adapter

    def learning_flops(self, task: int, tokens: Mapping[str, int]) -> int:
        """Gradients pass the earlier adapters, as they pass the base. The penalty isn't counted."""
        adapter = super().flops_per_token(task)
        return sum(tokens.values()) * training_flops(self._base_flops + task * adapter, adapter)

    def append(self, *primitives: Primitive) -> None:
        for primitive in primitives:
            self._retire()
            super().append(primitive)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        if self.tasks:
            self._retire()
            self._draw_again(seed_of(self.seed, task, "lora"))
        with self._at_work({}):
            return super().learn(task, samples, trainer)

    def loss(self, forward: Forward, inputs: Inputs, tokens: Tensor) -> Tensor:
        return super().loss(forward, inputs, tokens) + self.olora.weight * self.overlap()

    def overlap(self) -> Tensor | float:
        """How far the latest task's subspace is from orthogonal to those of earlier ones."""
        new = self._latest()
        return sum(
            (pair.A.float() @ new[name].A.float().T).abs().sum()
            for name, pair in self._earlier.items()
        )

    def _latest(self) -> dict[str, Pair]:
        """The latest task's pairs, which learn."""
        return pairs_of({n.replace(".default.", "."): p for n, p in self.trained().items()})

    def _at_work(self, inputs: Inputs) -> AbstractContextManager[None]:
        return beside(self.module, self._earlier, self.config.lora_alpha / self.config.rank)

    @torch.no_grad()
    def _retire(self) -> None:
        """The latest task's pairs, where there are any, become earlier ones."""
        if not self.tasks:
            return
        for name, pair in self._latest().items():
            kept = Pair(*(tensor.detach().clone() for tensor in pair))
            before = self._earlier.get(name)
            self._earlier[name] = kept if before is None else stacked([before, kept])
