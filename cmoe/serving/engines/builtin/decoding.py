"""What a base's own `generate` does besides its passes, for a batch that makes the passes itself.

How it counts positions, which tokens end an answer, and how `generation_config` changes the scores
of tokens before one is taken (`repetition_penalty`, `suppress_tokens` and the like). Evaluation
answers with `generate`, and a service must give the same answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cmoe.serving.bases import unserved

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        LogitsProcessorList,
        PretrainedConfig,
        PreTrainedModel,
        StoppingCriteriaList,
    )

LAYERS = ("full_attention", "sliding_attention")
"""Kinds of layers whose cache is a key and a value of each token."""

ENOUGH = 1024  # tokens of an answer, which no setting of generation finds too few


def require_servable(config: PretrainedConfig) -> None:
    """Refuse a base whose cache can't be cut and concatenated by row and token.

    That is impossible with the states of linear attention and state-space layers, with those of
    cross-attention, and with keys that layers share. Sliding windows are possible: all keys are
    kept, and masked. Rotary frequencies that depend on the longest row's length would let rows
    change each other's answers.

    Raises:
        UnservedBaseError: Names the base's type and what it has.
    """
    from transformers.cache_utils import get_layer_types_and_kwargs

    text = config.get_text_config(decoder=True)
    if config.is_encoder_decoder:
        raise unserved(config, "it is an encoder with a decoder")
    if getattr(text, "cross_attention_layers", None):
        raise unserved(config, "it has layers of cross-attention")
    kinds = sorted({*get_layer_types_and_kwargs(text)[0]} - {*LAYERS})
    if kinds:
        named = ", ".join(kinds).replace("dummy", "other layers' keys")
        raise unserved(
            config, f"it has layers of {named}; served are those of {' and '.join(LAYERS)}"
        )
    rope = getattr(text, "rope_parameters", None) or {}
    each = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    if any(part.get("rope_type") == "longrope" for part in each):
        raise unserved(config, "its rotary frequencies (longrope) depend on the longest prompt")


def positions_of(base: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Positions [..., B, S] of the prompts' tokens; each further token's is one more.

    A base may count in several dimensions, as an image has rows and columns; so the base's own
    function is called. Transformers doesn't promise that `generate` calls it: see `verification`.

    Args:
        base: The base that counts.
        inputs: B prompts, padded on the left.
    """
    count: Any = base._prepare_position_ids_for_generation
    found: Tensor = count(inputs["input_ids"], dict(inputs))
    return found


class _Plan(NamedTuple):
    """What `generate` would do with a prompt."""

    processors: LogitsProcessorList
    stopping: StoppingCriteriaList
    settings: GenerationConfig


class Decoding:
    """How a base's own `generate` takes tokens, always the likeliest one.

    Args:
        base: The base, with its `generation_config`.

    Attributes:
        ends: Tokens that end an answer.
        changes_scores: Whether scores are changed before a token is taken.

    Raises:
        UnservedBaseError: `generate` does more than change scores, take the best and stop at an
            end token; or the base's forward takes no positions.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base
        if "position_ids" not in inspect.signature(base.forward).parameters:
            raise unserved(base.config, "its forward takes no position_ids")
        try:
            plan = self._plan([1], ENOUGH)
        except (TypeError, ValueError) as error:  # of settings that need more than a prompt
            raise unserved(base.config, f"its generation_config: {error}") from error
        mode = plan.settings.get_generation_mode().value
        stops = {type(criterion).__name__ for criterion in plan.stopping}
        stops -= {"MaxLengthCriteria", "EosTokenCriteria"}
        if plan.settings.guidance_scale not in (None, 1):
            mode = "guidance_scale"
        if mode != "greedy_search" or stops:
            raise unserved(
                base.config,
                f"its generation_config asks for {', '.join(sorted(stops)) or mode}; the service "
                "takes the likeliest token, or draws one, until an end",
            )
        ends = plan.settings.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.changes_scores = len(plan.processors) > 0

    def processors(self, prompt: Sequence[int], max_new_tokens: int) -> LogitsProcessorList:
        """What changes the scores of the tokens of this prompt's answer."""
        return self._plan(prompt, max_new_tokens).processors

    def _plan(self, prompt: Sequence[int], max_new_tokens: int) -> _Plan:
        found: list[_Plan] = []

        def take(
            _: Any,
            input_ids: Tensor,
            logits_processor: LogitsProcessorList,
            stopping_criteria: StoppingCriteriaList,
            generation_config: GenerationConfig,
            **__: Any,
        ) -> Tensor:
            found.append(_Plan(logits_processor, stopping_criteria, generation_config))
            return input_ids

        ids = torch.tensor([prompt], device=self._base.device)
        self._base.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            custom_generate=take,
        )
        return found[0]


def scores_of(
    logits_bv: Tensor, rows: Sequence[tuple[LogitsProcessorList, Sequence[int]]]
) -> Tensor:
    """The scores [B, V] by which the next tokens are taken.

    Args:
        logits_bv: Logits of each row's next token.
        rows: For each row what changes its scores, and all its tokens so far, the prompt's first.
    """
    scores: list[Tensor] = []
    for logits_1v, (processors, tokens) in zip(logits_bv.float().split(1), rows, strict=True):
        ids: Any = torch.tensor([tokens], device=logits_bv.device)
        scores.append(processors(ids, logits_1v))
    return torch.cat(scores)
