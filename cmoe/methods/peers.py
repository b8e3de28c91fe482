"""The rivals in the same stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmoe.data.samples import Sample
from cmoe.methods.method import Forward, Trainer, decoder_flops, seed_of
from cmoe.modeling.base import find_decoder, fingerprint
from cmoe.modeling.growing import Inputs
from cmoe.modeling.locator import Location
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoRAConfig:
    """Sequential LoRA on every linear map of the decoder.

    Attributes:
        rank: Of the one adapter.
        lora_alpha: Its scale is `lora_alpha / rank`.
    """

    rank: int = 16
    lora_alpha: int = 32

    def __post_init__(self) -> None:
        for name in ("rank", "lora_alpha"):
            if getattr(self, name) < 1:
                raise ValueError(f"lora.{name} is {getattr(self, name)}; at least 1")


class SequentialLoRA:
    """One LoRA that goes on training from task to task, through PEFT: what forgetting looks like.

    A stage's primitive is the whole adapter as it then was; only the latest answers.

    Args:
        base: Frozen, and wrapped in place.
        config: The adapter's size.
        seed: Of its fresh weights.
    """

    locates = False

    def __init__(self, base: PreTrainedModel, config: LoRAConfig, seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        self.base_digest = fingerprint(base)
        self.base_parameters = sum(p.numel() for p in base.parameters())
        self._base_flops = decoder_flops(base)
        self.config = config
        self._base = base
        self.tasks: tuple[str, ...] = ()
        decoder = find_decoder(base)
        within = {id(m) for m in decoder.modules()}
        names = [
            name for name, m in base.named_modules() if isinstance(m, nn.Linear) and id(m) in within
        ]
        settings = LoraConfig(
            r=config.rank, lora_alpha=config.lora_alpha, target_modules=names, lora_dropout=0.0
        )
        with torch.random.fork_rng():  # PEFT draws from the global state
            torch.manual_seed(seed_of(seed, "lora"))
            self.module: Any = get_peft_model(base, settings)

    def settings(self) -> dict[str, Any]:
        return {"method": "lora", "rank": self.config.rank, "lora_alpha": self.config.lora_alpha}

    def enable_gradient_checkpointing(self) -> None:
        self._base.activation_checkpointing_enable({"use_reentrant": False})

    def flops_per_token(self, task: int) -> int:
        if task == BASE:
            return self._base_flops
        return 2 * sum(int(p.numel()) for n, p in self.module.named_parameters() if "lora_" in n)

    def expert_similarity(self) -> None:
        return None

    def append(self, *primitives: Primitive) -> None:
        from peft import set_peft_model_state_dict

        if primitives:
            set_peft_model_state_dict(self.module, dict(primitives[-1].experts))
        self.tasks += tuple(p.task for p in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        from peft import get_peft_model_state_dict

        trainer.fit("train", samples, _answer_loss)
        adapter = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in get_peft_model_state_dict(self.module).items()
        }
        self.tasks += (task,)
        return Primitive(task, self.config.rank, self.config.lora_alpha, adapter, {}, {})

    def features(self, inputs: Inputs) -> Tensor:
        raise NotImplementedError("one adapter answers all: there is no task to locate")

    def locate(self, features: Tensor) -> Location:
        raise NotImplementedError("one adapter answers all: there is no task to locate")

    @torch.no_grad()
    def generate(self, inputs: Inputs, task: int, **kwargs: Any) -> Tensor:
        if task not in (BASE, len(self.tasks) - 1):
            raise ValueError(f"stage {task} is gone: only stage {len(self.tasks) - 1} answers")
        with self.module.disable_adapter() if task == BASE else nullcontext():
            sequences: Tensor = self.module.generate(**inputs, **kwargs)
        return sequences


def _answer_loss(forward: Forward, inputs: Inputs, tokens: float) -> Tensor:
    loss: Tensor = forward(**inputs, num_items_in_batch=tokens).loss
    return loss
