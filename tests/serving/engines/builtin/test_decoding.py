"""Bases and settings that no batch can answer for are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from support.serving_bases import lfm2_vl, longrope, make_served, mllama, qwen3_5
from transformers import Gemma3nConfig, T5GemmaConfig

from cmoe.serving.bases import UnservedBaseError
from cmoe.serving.engines.builtin.decoding import Decoding, require_servable


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        (qwen3_5, "'qwen3_5' can't be served: it has layers of linear_attention"),
        (lfm2_vl, "'lfm2_vl' can't be served: it has layers of conv"),
        (mllama, "'mllama' can't be served: it has layers of cross-attention"),
        (longrope, "'llava' can't be served: its rotary frequencies"),
        (Gemma3nConfig, "'gemma3n' can't be served: it has layers of other layers' keys"),
        (T5GemmaConfig, "'t5gemma' can't be served: it is an encoder with a decoder"),
    ],
)
def test_what_no_batch_can_hold_is_refused_by_name(config: Any, cause: str) -> None:
    with pytest.raises(UnservedBaseError, match=cause):
        require_servable(config())


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"num_beams": 3}, "asks for beam_search"),
        ({"guidance_scale": 1.5}, "asks for guidance_scale"),
        ({"max_time": 1.0}, "asks for MaxTimeCriteria"),
        ({"stop_strings": ["."]}, "stop strings"),
        ({"prompt_lookup_num_tokens": 3}, "asks for assisted_generation"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_no_batch_can_keep_are_refused(settings: Any, cause: str) -> None:
    base = make_served("llava")
    base.generation_config.update(**settings)
    with pytest.raises(UnservedBaseError, match=f"'llava' can't be served.*{cause}"):
        Decoding(base)
