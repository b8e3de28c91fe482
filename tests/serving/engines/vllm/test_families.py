"""Which bases vLLM is asked to serve, told from the configuration alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.serving_bases import lfm2_vl, longrope, mllama, paligemma, qwen3_5
from support.vllm_bases import FAMILIES, TEXTS, llava_of, make_config
from transformers import PretrainedConfig

from cmoe.modeling.pretrained import load_config
from cmoe.modeling.settings import MINI_BASE
from cmoe.serving.bases import UnservedBaseError
from cmoe.serving.engines.vllm.families import require_servable

SERVED = [family for name, family in FAMILIES.items() if name != "gemma3"]


def test_bases_that_were_tried_are_taken() -> None:
    require_servable(load_config(str(MINI_BASE)), 4)
    for family in (*SERVED, *map(llava_of, TEXTS)):
        require_servable(make_config(family), 1)


def altered(name: str, part: str = "", **values: Any) -> Callable[[], PretrainedConfig]:
    def made() -> PretrainedConfig:
        config = make_config(FAMILIES[name])
        for key, value in values.items():
            setattr(getattr(config, part) if part else config, key, value)
        return config

    return made


def rope(name: str, **values: Any) -> Callable[[], PretrainedConfig]:
    def made() -> PretrainedConfig:
        config = make_config(FAMILIES[name])
        config.text_config.rope_parameters |= values
        return config

    return made


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (altered("gemma3"), "'gemma3' can't be served: the tokens of its pictures see one another"),
        (paligemma, "'paligemma' .* tried with llava, "),
        (mllama, "'mllama' "),
        (lfm2_vl, "'lfm2_vl' "),
        (qwen3_5, "'qwen3_5' "),
        (longrope, "rotary frequencies is longrope; .* default, linear"),
        (rope("llava", rope_type="dynamic", factor=2.0), "rotary frequencies is dynamic"),
        (rope("llava", partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
        (rope("qwen3_vl", mrope_interleaved=False), "mrope_interleaved is False; .* with True"),
        (altered("llava", "text_config", hidden_act="gelu"), "activation is gelu; .* with silu"),
        (altered("idefics3", "text_config", model_type="mistral"), "model is mistral; .* llama"),
        (altered("llava", vision_feature_layer=[-2, -1]), r"vision_feature_layer is \[-2, -1\]"),
        (altered("internvl", vision_feature_layer=-2), "vision_feature_layer is -2; .* with -1"),
        (
            altered(
                "llava_onevision",
                "text_config",
                layer_types=["full_attention", "sliding_attention"] * 2,
            ),
            "attention is full_attention and sliding_attention; .* with full_attention",
        ),
    ],
)
def test_others_are_refused_by_name(make: Callable[[], PretrainedConfig], why: str) -> None:
    with pytest.raises(UnservedBaseError, match=why):
        require_servable(make(), 1)


def test_several_images_need_a_base_whose_images_vllm_reads_as_it_does() -> None:
    for name, family in FAMILIES.items():
        if name not in ("gemma3", "llava_onevision"):
            require_servable(make_config(family), 4)
    with pytest.raises(UnservedBaseError, match=r"limits\.images is 2, .* set it to 1"):
        require_servable(make_config(FAMILIES["llava_onevision"]), 2)
