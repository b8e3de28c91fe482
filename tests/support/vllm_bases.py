"""Tiny random bases of every family with their processors, as folders that vLLM loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from cmoe.modeling.settings import MINI_BASE

VOCABULARY, WIDTH = 1664, 64  # the mini base's tokenizer has 1,536, and each family adds its own
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
SIDE, PATCH = 32, 8
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
MROPE3 = MROPE | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}

Ids = Mapping[str, int]


@dataclass(frozen=True)
class Family:
    """How a base of one family is made.

    Attributes:
        config: Of the ids of its own tokens.
        processor: Of its tokenizer and chat template.
        tokens: Its own tokens; those that its tokenizer knows by a name, under it.
        shown: What stands for a picture in a chat.
        plain: Further tokens.
    """

    config: Callable[[Ids], PretrainedConfig]
    processor: Callable[[Any, str], Any]
    tokens: Mapping[str, str] = field(default_factory=lambda: {"image_token": "<image>"})
    shown: str = "<image>\n"
    plain: Sequence[str] = ()


def _text(**more: Any) -> dict[str, Any]:
    return TEXT | more


def _llava(ids: Ids, **text: Any) -> PretrainedConfig:
    return transformers.LlavaConfig(
        vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
        text_config=_text(**{"model_type": "llama"} | text),
        image_token_index=ids["<image>"],
        image_seq_length=16,
    )


def _llava_processor(tokenizer: Any, chat: str, kind: str = "Llava", **more: Any) -> Any:
    pictures = {"Llava": "CLIPImageProcessorPil"}.get(kind, f"{kind}ImageProcessorPil")
    side = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return getattr(transformers, f"{kind}Processor")(
        getattr(transformers, pictures)(**side, **more),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    )


PINPOINTS = [[32, 64], [64, 32], [64, 64]]


def _llava_next(ids: Ids, **text: Any) -> PretrainedConfig:
    return transformers.LlavaNextConfig(
        vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
        text_config=_text(**{"model_type": "mistral"} | text),
        image_token_index=ids["<image>"],
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
    )


def _llava_next_processor(tokenizer: Any, chat: str) -> Any:
    return _llava_processor(tokenizer, chat, "LlavaNext", image_grid_pinpoints=PINPOINTS)


def _llava_onevision(ids: Ids, **text: Any) -> PretrainedConfig:
    return transformers.LlavaOnevisionConfig(
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=_text(**{"model_type": "qwen2"} | text),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=PINPOINTS,
    )


def _llava_onevision_processor(tokenizer: Any, chat: str) -> Any:
    side = {"height": SIDE, "width": SIDE}
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessorPil(size=side, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat,
    )


def _qwen_ids(ids: Ids) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_PIXELS = {"shortest_edge": 32 * 32, "longest_edge": 80 * 80}


def _qwen2_5_vl(ids: Ids) -> PretrainedConfig:
    vision = {"window_size": 32, "fullatt_block_indexes": [1]}
    return transformers.Qwen2_5_VLConfig(
        vision_config=QWEN_VISION | vision,
        text_config=_text(rope_parameters=MROPE),
        **_qwen_ids(ids),
    )


def _qwen3_vl(ids: Ids) -> PretrainedConfig:
    vision = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return transformers.Qwen3VLConfig(
        vision_config=QWEN_VISION | vision,
        text_config=_text(rope_parameters=MROPE3),
        **_qwen_ids(ids),
    )


def _qwen_processor(name: str) -> Callable[[Any, str], Any]:
    def made(tokenizer: Any, chat: str) -> Any:
        return getattr(transformers, name)(
            transformers.Qwen2VLImageProcessorPil(size=QWEN_PIXELS, patch_size=PATCH),
            tokenizer,
            (
                transformers.Qwen3VLVideoProcessor(patch_size=PATCH)
                if "3" in name
                else transformers.Qwen2VLVideoProcessor(patch_size=PATCH)
            ),
            chat_template=chat,
        )

    return made


INTERN_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def _internvl(ids: Ids, **text: Any) -> PretrainedConfig:
    vision = VISION | {"image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    return transformers.InternVLConfig(
        vision_config=vision,
        text_config=_text(**{"model_type": "qwen2"} | text),
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
        downsample_ratio=0.5,
    )


def _internvl_processor(tokenizer: Any, chat: str) -> Any:
    side = {"height": SIDE, "width": SIDE}
    return transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessorPil(size=side, crop_to_patches=True, max_patches=4),
        tokenizer,
        transformers.InternVLVideoProcessor(size=side),
        image_seq_length=4,
        chat_template=chat,
    )


IDEFICS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
TILES = tuple(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))


def _idefics(kind: str) -> Callable[[Ids], PretrainedConfig]:
    def made(ids: Ids) -> PretrainedConfig:
        return getattr(transformers, kind)(
            vision_config=VISION,
            text_config=_text(model_type="llama"),
            image_token_id=ids["<image>"],
            scale_factor=2,
            pad_token_id=0,
        )

    return made


def _idefics_processor(kind: str) -> Callable[[Any, str], Any]:
    def made(tokenizer: Any, chat: str) -> Any:
        pictures = getattr(transformers, f"{kind}ImageProcessorPil")(
            size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
        )
        videos = [transformers.SmolVLMVideoProcessor()] if kind == "SmolVLM" else []
        return getattr(transformers, f"{kind}Processor")(
            pictures, tokenizer, *videos, image_seq_len=4, chat_template=chat
        )

    return made


LINES = tuple("\n" * n for n in range(1, 5))  # Gemma's tokenizer has each as one token


def _gemma3(ids: Ids) -> PretrainedConfig:
    windows = {
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 16,
    }
    return transformers.Gemma3Config(
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=_text(**windows),
        image_token_index=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        mm_tokens_per_image=4,
    )


def _gemma3_processor(tokenizer: Any, chat: str) -> Any:
    return transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        tokenizer,
        chat_template=chat,
        image_seq_length=4,
    )


def _qwen2_vl(ids: Ids) -> PretrainedConfig:
    vision = {name: QWEN_VISION[name] for name in ("depth", "num_heads", "patch_size")}
    return transformers.Qwen2VLConfig(
        vision_config=vision | {"embed_dim": 32, "hidden_size": WIDTH, "mlp_ratio": 2},
        text_config=_text(rope_parameters=MROPE),
        **_qwen_ids(ids),
    )


FAMILIES = {
    "llava": Family(_llava, _llava_processor),
    "llava_next": Family(_llava_next, _llava_next_processor),
    "llava_onevision": Family(
        _llava_onevision,
        _llava_onevision_processor,
        {"image_token": "<image>", "video_token": "<video>"},
    ),
    "qwen2_vl": Family(_qwen2_vl, _qwen_processor("Qwen2VLProcessor"), QWEN_TOKENS, QWEN_SHOWN),
    "qwen2_5_vl": Family(
        _qwen2_5_vl, _qwen_processor("Qwen2_5_VLProcessor"), QWEN_TOKENS, QWEN_SHOWN
    ),
    "qwen3_vl": Family(_qwen3_vl, _qwen_processor("Qwen3VLProcessor"), QWEN_TOKENS, QWEN_SHOWN),
    "internvl": Family(_internvl, _internvl_processor, INTERN_TOKENS, "<IMG_CONTEXT>\n"),
    "idefics3": Family(
        _idefics("Idefics3Config"),
        _idefics_processor("Idefics3"),
        shown="<image>",
        plain=(*IDEFICS, *TILES),
    ),
    "smolvlm": Family(
        _idefics("SmolVLMConfig"),
        _idefics_processor("SmolVLM"),
        shown="<image>",
        plain=(*IDEFICS, *TILES, "<video>"),
    ),
    "gemma3": Family(
        _gemma3,
        _gemma3_processor,
        {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        "<start_of_image>",
        LINES,
    ),
}


WINDOW = {"sliding_window": 24}
TEXTS: dict[str, dict[str, Any]] = {
    "mistral": WINDOW,
    "qwen2": {},
    "qwen3": {},
    "phi3": WINDOW,
    "gemma": {},
    "granite": {},
    "nemotron": {"hidden_act": "relu2"},
}
"""Language models that a LLaVA may have, beside Llama's."""


def llava_of(text: str, **more: Any) -> Family:
    """LLaVA with another language model, and more that its configuration says."""
    config = partial(_llava, model_type=text, **TEXTS.get(text, {}), **more)
    return replace(FAMILIES["llava"], config=config)


def make_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """The mini base's, with a family's own tokens behind."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(MINI_BASE / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=1024,
        extra_special_tokens=dict(family.tokens),
    )
    for token in family.plain:
        tokenizer.add_tokens(token, special_tokens=not token.isspace())
    return tokenizer


def make_model(config: PretrainedConfig) -> PreTrainedModel:
    """A base with random weights that tell errors apart."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    inputs = model.get_input_embeddings().weight  # where larger, a tied head repeats its input
    with torch.no_grad():
        for p in model.parameters():
            if p is inputs:
                continue
            if p.ndim < 2 or not p.any():
                p.add_(0.05 * torch.randn(p.shape))
            if p.ndim >= 2:
                p.mul_(8)
    return model


def make_config(family: Family) -> PretrainedConfig:
    tokenizer = make_tokenizer(family)
    own = [*family.tokens.values(), *family.plain]
    return family.config(dict(zip(own, tokenizer.convert_tokens_to_ids(own), strict=True)))


def write_base(family: Family, folder: Path) -> PreTrainedModel:
    """Write a family's tiny base with its processor to a folder."""
    shown = family.shown.replace("\n", "\\n")
    chat = (MINI_BASE / "chat_template.jinja").read_text().replace("<image>\\n", shown)
    model = make_model(make_config(family))
    model.save_pretrained(folder)
    family.processor(make_tokenizer(family), chat).save_pretrained(folder)
    return model
