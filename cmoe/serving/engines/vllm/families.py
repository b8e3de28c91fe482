"""Which bases vLLM answers for as their own `generate` does: those that were tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cmoe.serving.bases import unserved

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ACTIVATIONS: Mapping[str, str] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "granite"), "silu"),
    "gemma": "gelu_pytorch_tanh",
    "nemotron": "relu2",
}
"""Language models that a base may be made of, and the activation of their FFNs: vLLM has some
written in."""

WINDOWED = ("mistral", "phi3")  # all layers have one window, or none
PARTLY_ROTATED = ("nemotron",)
ROPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Family:
    """What bases of a type were tried with.

    Attributes:
        vision: Types of vision towers.
        text: Types of language models, and the activation of each.
        features: Layers of the tower that give features; None where any may, or several.
        several: Whether several images of a conversation are read as the base itself reads them.
    """

    vision: tuple[str, ...]
    text: Mapping[str, str]
    features: tuple[int, ...] | None = None
    several: bool = True


TOWERS = ("clip_vision_model", "siglip_vision_model")
ONEVISION = {name: act for name, act in ACTIVATIONS.items() if name != "granite"}
FAMILIES: Mapping[str, Family] = {
    "llava": Family(TOWERS, ACTIVATIONS, (-1, -2)),
    "llava_next": Family(TOWERS, ACTIVATIONS),
    # It cuts a single image into tiles, and several not; vLLM prepares each as a single one.
    "llava_onevision": Family(TOWERS[1:], ONEVISION, (-1,), several=False),
    "internvl": Family(("internvl_vision",), ACTIVATIONS, (-1,)),
    "idefics3": Family(("idefics3_vision",), {"llama": "silu"}),
    "smolvlm": Family(("smolvlm_vision",), {"llama": "silu"}),
    "qwen2_vl": Family(("qwen2_vl_vision",), {"qwen2_vl_text": "silu"}),
    "qwen2_5_vl": Family(("qwen2_5_vl_vision",), {"qwen2_5_vl_text": "silu"}),
    "qwen3_vl": Family(("qwen3_vl_vision",), {"qwen3_vl_text": "silu"}),
}

REFUSED: Mapping[str, str] = {
    "gemma3": "the tokens of its pictures see one another; in vLLM's attention on CPUs, the only "
    "one that was tried, they see what stands before them",
}


def require_servable(config: PretrainedConfig, images: int) -> None:
    """Refuse a base that vLLM wasn't tried with, or was seen to answer wrongly.

    Args:
        config: Of the base.
        images: That a conversation may have.

    Raises:
        UnservedBaseError: Names the base's type and what it has.
    """
    if why := REFUSED.get(config.model_type):
        raise unserved(config, why)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise unserved(config, f"vLLM was tried with {', '.join(FAMILIES)}")
    if images > 1 and not family.several:
        raise unserved(
            config,
            f"limits.images is {images}, and vLLM reads several images of a conversation otherwise "
            "than this base itself; set it to 1",
        )
    text = config.get_text_config(decoder=True)
    act = getattr(text, "hidden_act", None) or getattr(text, "hidden_activation", None)
    rope = getattr(text, "rope_parameters", None) or {}
    windows = {*(getattr(text, "layer_types", None) or ())}
    full, sliding = {"full_attention"}, {"sliding_attention"}
    tried: list[tuple[str, Any, Sequence[Any]]] = [
        ("vision tower", config.vision_config.model_type, family.vision),
        ("language model", text.model_type, [*family.text]),
        ("activation", act, [family.text.get(text.model_type)]),
        ("rotary frequencies", rope.get("rope_type", "default"), ROPES),
    ]
    if family.features is not None:
        tried.append(("vision_feature_layer", config.vision_feature_layer, family.features))
    if text.model_type not in PARTLY_ROTATED:
        tried.append(("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), [1.0]))
    if config.model_type == "qwen3_vl":  # vLLM counts the positions of pictures otherwise without
        tried.append(("rope_parameters.mrope_interleaved", rope.get("mrope_interleaved"), [True]))
    if windows:
        allowed = [full, sliding] if text.model_type in WINDOWED else [full]
        tried.append(("layers' attention", windows, allowed))
    for what, found, known in tried:
        if found not in known:
            names = ", ".join(map(_named, known))
            raise unserved(config, f"its {what} is {_named(found)}; vLLM was tried with {names}")


def _named(found: Any) -> str:
    return " and ".join(sorted(found)) if isinstance(found, set) else str(found)
