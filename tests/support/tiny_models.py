"""Tiny models with random weights of five families, and batches with a picture for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from support.devices import DEVICE
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Idefics3Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2Config,
    SmolVLMConfig,
)

IMAGE, VOCABULARY, LAYERS, WIDTH = 3, 64, 4, 32
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


def llava() -> LlavaConfig:
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        image_seq_length=16,
    )


def llava_next() -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[16, 16]],
    )


def qwen2_5_vl() -> Qwen2_5_VLConfig:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config=TEXT | {"rope_parameters": rope},
        image_token_id=IMAGE,
        video_token_id=4,
        vision_start_token_id=5,
    )


def internvl() -> InternVLConfig:
    return InternVLConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [16, 16],
            "patch_size": [4, 4],
        },
        text_config=Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        downsample_ratio=0.5,
        image_seq_length=4,
    )


def smolvlm() -> SmolVLMConfig:
    return SmolVLMConfig(
        vision_config=VISION, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2
    )


def idefics3() -> Idefics3Config:
    return Idefics3Config(
        vision_config=VISION, text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2
    )


CONFIGS: dict[str, tuple[Callable[[], PretrainedConfig], int]] = {
    "llava": (llava, 16),
    "llava_next": (llava_next, 36),
    "qwen2_5_vl": (qwen2_5_vl, 4),
    "internvl": (internvl, 4),
    "smolvlm": (smolvlm, 4),
    "idefics3": (idefics3, 4),
}


def make_base(
    family: str = "llava", seed: int = 0, config: PretrainedConfig | None = None
) -> PreTrainedModel:
    """A base of a family, or of a configuration of one's own."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config or CONFIGS[family][0]())
    # Initial weights of 0.02 make every function nearly linear: use some that tell errors apart.
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.mul_(8)
    return model.eval().to(DEVICE)


def untouched_base(family: str = "llava") -> PreTrainedModel:
    """What a wrapped base is compared with to the bit.

    Frozen as that is: torch multiplies by a weight that requires a gradient in another order, even
    where no gradient is taken.
    """
    return make_base(family).requires_grad_(False)


def make_inputs(family: str = "llava", batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Prompts of several lengths, padded on the left, each with a picture."""
    inputs = _inputs(family, batch, seed)
    return {name: tensor.to(DEVICE) for name, tensor in inputs.items()}


def _inputs(family: str, batch: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, length = [], 0
    for i in range(batch):
        text = torch.randint(8, VOCABULARY, (4 + i % 3,), generator=generator).tolist()
        start = [5] if family == "qwen2_5_vl" else []
        rows.append([1, *start, *[IMAGE] * CONFIGS[family][1], *text])
        length = max(length, len(rows[-1]))
    ids = torch.tensor([[0] * (length - len(r)) + r for r in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if family == "qwen2_5_vl":
        inputs["pixel_values"] = torch.randn(batch * 16, 3 * 2 * 4 * 4, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * batch)
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
        return inputs
    shape = {"llava_next": (batch, 2, 3, 16, 16), "llava": (batch, 3, 16, 16)}
    shape["internvl"] = shape["llava"]
    inputs["pixel_values"] = torch.randn(
        shape.get(family, (batch, 1, 3, 16, 16)), generator=generator
    )
    if family == "llava_next":
        inputs["image_sizes"] = torch.tensor([[16, 16]] * batch)
    return inputs


def make_wide_base() -> PreTrainedModel:
    """A LLaVA whose layers are wide enough for its parts to have about a real one's shares."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=4,
        ),
        text_config=LlamaConfig(
            vocab_size=8000,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=4,
            pad_token_id=0,
        ),
        image_token_index=IMAGE,
        image_seq_length=64,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).to(DEVICE)


def make_wide_inputs(batch: int, text: int) -> dict[str, Tensor]:
    """Samples of a picture and so many tokens of text, each of which is an answer's."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 8000, (batch, 64 + text), generator=generator)
    ids[:, :64] = IMAGE
    pixels = torch.randn(batch, 3, 32, 32, generator=generator)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids,
        "pixel_values": pixels,
    }
    return {name: tensor.to(DEVICE) for name, tensor in inputs.items()}
