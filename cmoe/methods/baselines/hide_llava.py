"""HiDe-LLaVA: a LoRA for every task; summed in all layers but the last, weighed by sample there.

Guo et al. 2025 (arXiv 2503.12941), stated from their code, github.com/Ghy0501/HiDe-LLaVA (the same
in their MCITlib). Each task trains a pair of its own at every linear map of the decoder, on nothing
but the base: `h = W x + s B_t A_t x`. After task T, with n = T + 1 tasks:

    below the last layer   h = W x + s (sum_i B_i) (sum_i A_i) x    HiDe/peft/tuners/clitmoelora.py
    in the last layer      h = W x + s sum_i w_i B_i A_i x          ibid.
    of a sample            w = softmax_i(sim_i / temperature)       llava/model/llava_arch.py
                           sim_i = (cos(f_image, a_image_i) + cos(f_text, a_text_i)) / 2

The anchors `a_i` are means of `f` over the task's training samples, `f` are features of the
sample's picture and of its question. The sums are of A and of B, each with weight 1, not of their
products.

Where this differs from the code, and why:

- `f_image` and `f_text` are CLIP's there, of 768 numbers: a picture's projected embedding, and the
  pooled output of a text tower that LLaVA doesn't have. Bases here have no such tower, so features
  are those that enter the decoder: means over the picture's tokens and over the text's. They, too,
  are frozen, and neither modality sees the other.
- The text is the prompt's, with what the chat template puts around the question. Theirs is cut at
  line breaks that are their own template's.
- The softmax is over the tasks learned so far. Theirs is over `expert_num` tasks, 6 at inference:
  of those that aren't learned yet anchors are noise and pairs 0, and a seventh has no weight.
- An anchor is the mean. Theirs begins with a random vector that counts as one more sample.
- The projector is frozen, as for every method here. LLaVA's LoRA recipe trains it.
- Fresh weights are PEFT's, as for every method here. Theirs have a deviation of 0.01, which at 4096
  inputs is about as wide. No dropout (theirs is 0.05).
- Sizes are those of `lora`, of each task's pair. Theirs is 8 with a scale of 2 (`lora_r` 64 for
  CoIN's 8 tasks, shared out among them).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmoe.data.samples import Sample
from cmoe.methods.baselines.pairs import Pair, beside, pairs_of, stacked
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.method import Trainer, seed_of, training_flops
from cmoe.methods.settings import HiDeConfig, LoRAConfig
from cmoe.modeling.base import (
    find_layers,
    hidden_state,
    pooled,
    pooling_weights,
    watch_hidden_state,
)
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODALITIES = ("image", "text")
"""Of a task's anchors, in the locator's part of its primitive."""


class HiDeLLaVA(SequentialLoRA):
    """A LoRA for every task, fused below the last layer and weighed by similarity in it.

    No task is chosen: the weights mix all of them. Any stage can answer.

    Args:
        base: Frozen, and wrapped in place.
        lora: The size of a task's adapter.
        hide: The weights.
        seed: Of fresh weights.
    """

    name = "hide_llava"

    def __init__(
        self, base: PreTrainedModel, lora: LoRAConfig, hide: HiDeConfig, seed: int
    ) -> None:
        super().__init__(base, lora, seed)
        self.hide, self.seed = hide, seed
        last = {id(m) for m in find_layers(base)[-1].modules()}
        self._top = {name for name, m in self.module.named_modules() if id(m) in last}
        self._log: list[Primitive] = []
        self._weighed: dict[str, Pair] = {}
        self._taken: int | None = None

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"hide": asdict(self.hide)}

    def at_work(self, stage: int) -> set[int]:
        return set(range(stage + 1))

    def flops_per_token(self, task: int) -> int:
        """Of the fused adapter, and of all in the last layer."""
        adapter = super().flops_per_token(task)
        if task == BASE:
            return adapter
        top = pairs_of(self._weights())
        return adapter + 2 * task * sum(t.numel() for n in self._top & top.keys() for t in top[n])

    def learning_flops(self, task: int, tokens: Mapping[str, int]) -> int:
        """A task is trained by itself. Its anchors need no layer of the decoder."""
        trained = sum(n for phase, n in tokens.items() if phase != "features")
        return trained * training_flops(self._base_flops, super().flops_per_token(task))

    def append(self, *primitives: Primitive) -> None:
        self._log += primitives
        self.tasks += tuple(p.task for p in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        self._draw_again(seed_of(self.seed, task, "lora"))
        self._taken = None
        primitive = super().learn(task, samples, trainer)
        features = torch.cat(trainer.map("features", samples, self._embedded))
        anchors = features.mean(0).chunk(len(MODALITIES))
        named = {name: a.clone() for name, a in zip(MODALITIES, anchors, strict=True)}
        self._log.append(replace(primitive, locator=named))
        return self._log[-1]

    def weights(self, features: Tensor, stage: int) -> Tensor:
        """How much each task's pairs in the last layer count, [B, n] with a sum of 1.

        Args:
            features: [B, 2 d] of the pictures and of the texts.
            stage: Of which task on; `n` is the number of tasks by then.
        """
        similar = [
            F.cosine_similarity(found.unsqueeze(1), anchors.unsqueeze(0), dim=-1)
            for found, anchors in zip(
                features.chunk(len(MODALITIES), -1), self._anchors(stage, features), strict=True
            )
        ]
        return (torch.stack(similar).mean(0) / self.hide.temperature).softmax(-1)

    def _anchors(self, stage: int, like: Tensor) -> list[Tensor]:
        """By modality, [n, d]."""
        log = self._log[: stage + 1]
        return [torch.stack([p.locator[name] for p in log]).to(like) for name in MODALITIES]

    @torch.no_grad()
    def _embedded(self, inputs: Inputs) -> Tensor:
        """The features of prompts."""
        return pooled_apart(hidden_state(self._base, 0, inputs), inputs, self._base.config)

    @contextmanager
    def _at_work(self, inputs: Inputs) -> Iterator[None]:
        """The last layer's pairs, weighed by what enters the first in the pass over the prompt."""
        stage = self._taken
        assert stage is not None
        found: list[Tensor] = []

        def seen(hidden_bsd: Tensor) -> None:
            if not found:  # passes behind it are of single new tokens
                features = pooled_apart(hidden_bsd, inputs, self._base.config)
                weights = self.weights(features, stage)
                found.append(weights.repeat_interleave(self.config.rank, 1))

        scale = self.config.lora_alpha / self.config.rank
        with (
            watch_hidden_state(self._base, 0, seen),
            beside(self.module, self._weighed, scale, lambda: found[0]),
        ):
            yield

    def _take(self, task: int) -> None:
        if task == self._taken:
            return
        if task >= len(self._log):
            raise ValueError(f"stage {task} isn't learned yet: {len(self._log)} are")
        device = next(self._base.parameters()).device
        log = [pairs_of(p.experts) for p in self._log[: task + 1]]
        self._weighed = {
            name: Pair(*(t.to(device) for t in stacked(pairs[name] for pairs in log)))
            for name in self._top & log[0].keys()
        }
        self._load(
            {
                name: torch.zeros_like(latest) if self._in_top(name) else self._sum(name, task)
                for name, latest in self._log[task].experts.items()
            }
        )
        self._taken = task

    def _in_top(self, name: str) -> bool:
        return name.rpartition(".lora_")[0] in self._top

    def _sum(self, name: str, stage: int) -> Tensor:
        """Of a tensor of all tasks' adapters."""
        tensors = [p.experts[name] for p in self._log[: stage + 1]]
        return torch.stack(tensors).sum(0, dtype=torch.float32).to(tensors[0])


def pooled_apart(hidden_bsd: Tensor, inputs: Inputs, config: Any) -> Tensor:
    """Means over the picture's and over the text's tokens of each prompt, [B, 2 d]; 0 of no tokens.

    Args:
        hidden_bsd: What enters a layer of the decoder.
        inputs: The prompts.
        config: The base's.
    """
    text_bs = pooling_weights(inputs, "mean_text", config)
    image_bs = ((pooling_weights(inputs, "mean", config) > 0) & (text_bs == 0)).float()
    image_bs = image_bs / image_bs.sum(-1, keepdim=True).clamp_min(1.0)
    return torch.cat([pooled(hidden_bsd, weights_bs) for weights_bs in (image_bs, text_bs)], -1)
