"""One LoRA that goes on training from task to task."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmoe.methods.adapter import Adapter
from cmoe.methods.method import seed_of
from cmoe.methods.settings import LoRAConfig
from cmoe.modeling.base import find_decoder, find_ffns

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SequentialLoRA(Adapter):
    """One LoRA, through PEFT.

    Args:
        base: Frozen, and wrapped in place.
        lora: The adapter's size.
        seed: Of its fresh weights.
    """

    name = "lora"
    config: LoRAConfig

    def __init__(self, base: PreTrainedModel, lora: LoRAConfig, seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__(base)
        self.config = lora
        parts = [find_decoder(base)]
        if lora.maps == "ffn":
            parts = [site.module for site in find_ffns(base)]
        within = {id(m) for part in parts for m in part.modules()}
        names = [
            name for name, m in base.named_modules() if isinstance(m, nn.Linear) and id(m) in within
        ]
        settings = LoraConfig(
            r=lora.rank, lora_alpha=lora.lora_alpha, target_modules=names, lora_dropout=0.0
        )
        with torch.random.fork_rng():  # PEFT draws from the global state
            torch.manual_seed(seed_of(seed, "lora"))
            # In the base's dtype from the start, which it has once it was trained.
            self.module = get_peft_model(base, settings, autocast_adapter_dtype=False)
        for p in self.trained().values():  # beside packed weights PEFT's are float32
            p.data = p.data.to(base.dtype)

    def settings(self) -> dict[str, Any]:
        return {"method": self.name, **asdict(self.config)}

    @torch.no_grad()
    def _draw_again(self, seed: int) -> None:
        """Put fresh weights in the adapter's place, of PEFT's distribution, alike on any device."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.trained().items():
            if ".lora_A." in name:
                bound = p.shape[1] ** -0.5
                drawn = torch.rand(p.shape, generator=generator)
                p.copy_(drawn.mul_(2 * bound).sub_(bound))
            else:
                p.zero_()

    def _weights(self) -> Mapping[str, Tensor]:
        from peft import get_peft_model_state_dict

        weights: Mapping[str, Tensor] = get_peft_model_state_dict(self.module)
        return weights

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.module, dict(weights))

    def _off(self) -> AbstractContextManager[None]:
        off: AbstractContextManager[None] = self.module.disable_adapter()
        return off
