"""Tiny bases of further families, which count positions or keep caches otherwise, and prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support.tiny_models import CONFIGS, IMAGE, TEXT, VISION, VOCABULARY, WIDTH, make_base
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    Cohere2VisionConfig,
    Gemma3Config,
    Glm4vConfig,
    Lfm2VlConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    MllamaConfig,
    PaliGemmaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3VLConfig,
)

MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": 4, "vision_start_token_id": 5}
SIGLIP = VISION | {"model_type": "siglip_vision_model"}
WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}


def qwen2_vl() -> Qwen2VLConfig:
    vision = QWEN_VISION | {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2}
    for name in ("intermediate_size", "out_hidden_size"):
        del vision[name]
    return Qwen2VLConfig(
        vision_config=vision, text_config=TEXT | {"rope_parameters": MROPE}, **QWEN_TOKENS
    )


def qwen3_vl() -> Qwen3VLConfig:
    return Qwen3VLConfig(
        vision_config=QWEN_VISION
        | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        text_config=TEXT | {"head_dim": 8, "rope_parameters": MROPE},
        vision_end_token_id=6,
        **QWEN_TOKENS,
    )


def qwen3_5() -> Qwen3_5Config:
    return Qwen3_5Config(
        vision_config=QWEN_VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": []},
        text_config=TEXT
        | {
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "rope_parameters": MROPE | {"partial_rotary_factor": 0.5},
        },
        vision_end_token_id=6,
        **QWEN_TOKENS,
    )


def glm4v() -> Glm4vConfig:
    return Glm4vConfig(
        vision_config=QWEN_VISION | {"image_size": 16},
        text_config=TEXT | {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}},
        image_token_id=IMAGE,
        video_token_id=4,
        image_start_token_id=5,
        image_end_token_id=6,
    )


def gemma3() -> Gemma3Config:
    return Gemma3Config(
        vision_config=VISION,
        text_config=TEXT | {"head_dim": 8} | WINDOWS,
        image_token_id=IMAGE,
        mm_tokens_per_image=4,
        boi_token_id=5,
        eoi_token_id=6,
    )


def paligemma() -> PaliGemmaConfig:
    return PaliGemmaConfig(
        vision_config=SIGLIP | {"projection_dim": WIDTH},
        text_config=TEXT | {"model_type": "gemma", "head_dim": 8},
        image_token_id=IMAGE,
        projection_dim=WIDTH,
    )


def mistral3() -> Mistral3Config:
    return Mistral3Config(
        vision_config=VISION | {"model_type": "pixtral", "head_dim": 8},
        text_config=TEXT | {"model_type": "mistral", "head_dim": 8, "sliding_window": 6},
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )


def llava_onevision() -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=TEXT | {"model_type": "qwen2"},
        image_token_id=IMAGE,
        video_token_id=4,
        image_grid_pinpoints=[[16, 16], [16, 32]],
    )


def cohere2_vision() -> Cohere2VisionConfig:
    return Cohere2VisionConfig(
        vision_config=SIGLIP,
        text_config=TEXT | {"model_type": "cohere2"} | WINDOWS,
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )


def mllama() -> MllamaConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return MllamaConfig(
        text_config=TEXT | {"cross_attention_layers": [1, 3], "rope_parameters": rope},
        image_token_index=IMAGE,
    )


def lfm2_vl() -> Lfm2VlConfig:
    return Lfm2VlConfig(
        text_config=TEXT | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"] * 2},
        image_token_id=IMAGE,
    )


def longrope() -> LlavaConfig:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 16,
    }
    return LlavaConfig(text_config=TEXT | {"model_type": "llama", "rope_parameters": rope})


MORE: dict[str, Callable[[], PretrainedConfig]] = {
    each.__name__: each
    for each in (
        qwen2_vl,
        qwen3_vl,
        glm4v,
        gemma3,
        paligemma,
        mistral3,
        llava_onevision,
        cohere2_vision,
    )
}
SERVED = (*CONFIGS, *MORE)
GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")  # pictures in rows and columns


def make_served(family: str) -> PreTrainedModel:
    if family in CONFIGS:
        return make_base(family)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(MORE[family]())
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.mul_(8)
    return model.eval()


def make_prompt(family: str, length: int, seed: int, picture: str = "") -> dict[str, Tensor]:
    """A prompt of a batch of one: so many tokens of text, and a picture between them.

    Args:
        family: One of `SERVED`.
        length: Of the text.
        seed: Of text and picture.
        picture: `small`, `wide` or none; a family that makes all pictures alike has them alike.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    text = torch.randint(8, VOCABULARY, (length,), generator=generator).tolist()
    wide, inputs, tokens = picture == "wide", {}, 0
    if picture:
        inputs, tokens = _pictured(family, wide, noise)
    shown = [5, *[IMAGE] * tokens, 6] if picture else []
    ids = torch.tensor([[1, *text[:2], *shown, *text[2:]]])
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family in GRIDS:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    if family in ("gemma3", "paligemma"):
        inputs["token_type_ids"] = (ids == IMAGE).long() * (family == "gemma3")
    return inputs


def _pictured(family: str, wide: bool, noise: Any) -> tuple[dict[str, Tensor], int]:
    """A picture's inputs, and its tokens."""
    if family in GRIDS:
        columns = 8 if wide else 4
        grid = torch.tensor([[1, 4, columns]])
        return {"pixel_values": noise(4 * columns, 96), "image_grid_thw": grid}, columns
    if family in ("llava_next", "llava_onevision"):  # tiles: the whole, and its parts
        if wide and family == "llava_onevision":
            sizes = torch.tensor([[16, 32]])
            return {"pixel_values": noise(1, 3, 3, 16, 16), "image_sizes": sizes}, 16 + 32 + 4
        tiles = {"pixel_values": noise(1, 2, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
        return tiles, 36
    if family in ("smolvlm", "idefics3"):
        return {"pixel_values": noise(1, 1 + wide, 3, 16, 16)}, 4 * (1 + wide)
    inputs = {"pixel_values": noise(1, 3, 16, 16)}
    if family == "mistral3":
        width = 8 if not wide else 16
        inputs = {
            "pixel_values": noise(1, 3, 16, width),
            "image_sizes": torch.tensor([[16, width]]),
        }
        return inputs, 2 * (width // 8)
    return inputs, {"llava": 16, "paligemma": 16}.get(family, 4)
