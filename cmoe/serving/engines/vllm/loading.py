"""Bases that vLLM doesn't take as they are: names of weights, sizes of heads, pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.auto import image_processing_auto
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

FORMAT = "cmoe"
"""vLLM's `load_format` of our loader."""

TOWER, INNER = "vision_tower.", "vision_tower.vision_model."


@register_model_loader(FORMAT)
class Loader(DefaultModelLoader):
    """Reads weights that transformers 5 wrote: its vision towers have no inner `vision_model`."""

    def __init__(self, load_config: LoadConfig) -> None:
        load_config.load_format = "auto"
        super().__init__(load_config)

    def get_all_weights(
        self, model_config: ModelConfig, model: nn.Module
    ) -> Iterator[tuple[str, Tensor]]:
        inner = hasattr(getattr(model, "vision_tower", None), "vision_model")
        for name, weight in super().get_all_weights(model_config, model):
            if inner and TOWER in name and INNER not in name:
                name = name.replace(TOWER, INNER)
            yield name, weight


def pad_heads() -> None:
    """Let attention on CPUs take heads of any size, filled up with zeros to one that it has.

    Zeros add nothing to a query's product with a key, and a value's are cut off again.
    """
    if getattr(Attention, "_cmoe_pads", False):
        return
    construct, attend = Attention.__init__, Attention.forward

    def init(self: Any, num_heads: int, head_size: int, *args: Any, **kwargs: Any) -> None:
        sizes = [s for s in CPUAttentionBackend.get_supported_head_sizes() if s >= head_size]
        wide = min(sizes, default=head_size)
        construct(self, num_heads, wide, *args, **kwargs)
        self._cmoe_size = head_size

    def forward(self: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any) -> Tensor:
        size, wide = self._cmoe_size, self.head_size
        if size == wide:
            same: Tensor = attend(self, query, key, value, *args)
            return same
        more = (0, wide - size)
        padded = [F.pad(t.reshape(len(t), -1, size), more).flatten(1) for t in (query, key, value)]
        out: Tensor = attend(self, *padded)
        return out.view(len(out), -1, wide)[..., :size].flatten(1)

    Attention.__init__, Attention.forward, Attention._cmoe_pads = init, forward, True


def prepare_pictures_as_trained() -> None:
    """Let pictures be prepared with Pillow, as without torchvision, which vLLM brings along.

    The two differ by up to one grey level. `mm_processor_kwargs` can't say it: a processor hands
    the word on to its videos' part, which has no such choice. To be called before an engine is
    made, in the process that prepares pictures and in the engine's own.
    """
    image_processing_auto._resolve_backend = lambda *_: "pil"
