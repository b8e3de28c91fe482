"""What a base's own `generate` does beside its passes, for a batch that makes the passes itself.

How it counts positions, which tokens end an answer, and how `generation_config` changes the scores
of tokens before one is taken (`repetition_penalty`, `suppress_tokens` and the like). Evaluation
answers with `generate`; a service must say the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

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

ENOUGH = 1024  # tokens of an answer: more than any setting needs at least


class UnservedBaseError(ValueError):
    """A base that the service would answer for in another way than its own `generate`."""


def unserved(config: PretrainedConfig, why: str) -> UnservedBaseError:
    """The error of a base that is named by its type."""
    return UnservedBaseError(f"a base of type {config.model_type!r} can't be served: {why}")


def require_servable(config: PretrainedConfig) -> None:
    """Refuse a base whose cache can't be cut and put together by row and token.

    So can't the states of a linear attention or a state-space layer, those of a cross-attention,
    and keys that layers share. Windows are no hindrance: all keys are kept, and masked. Rotary
    frequencies that change with the longest row's length would let rows change each other.

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


def context_of(config: PretrainedConfig) -> int:
    """Tokens that prompt and answer may have together.

    Raises:
        UnservedBaseError: The base doesn't say.
    """
    found = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if found is None:
        raise unserved(config, "its configuration has no max_position_embeddings")
    return int(found)


def positions_of(base: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Positions [..., B, S] of the prompts' tokens; those of further tokens are one more each.

    A base may count in several dimensions, as a picture has rows and columns; so this is its own
    function. That `generate` calls it is no promise of transformers: see `verification`.

    Args:
        base: Counts.
        inputs: Of B prompts, padded on the left.
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
    """How a base's own `generate` takes tokens, one likeliest after the other.

    Args:
        base: With its `generation_config`.

    Attributes:
        ends: Tokens that end an answer.
        changes: Whether scores are changed before a token is taken.

    Raises:
        UnservedBaseError: `generate` does more than change scores, take the best and stop at an
            end; or the base isn't told positions.
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
        self.changes = len(plan.processors) > 0

    def processors(self, prompt: Sequence[int], max_new_tokens: int) -> LogitsProcessorList:
        """What changes the scores of this prompt's answer."""
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
    """The scores [B, V] that tokens are taken by.

    Args:
        logits_bv: Of each row's next token.
        rows: Of each what changes its scores, and all its tokens so far, the prompt's first.
    """
    scores: list[Tensor] = []
    for logits_1v, (processors, tokens) in zip(logits_bv.float().split(1), rows, strict=True):
        ids: Any = torch.tensor([tokens], device=logits_bv.device)
        scores.append(processors(ids, logits_1v))
    return torch.cat(scores)
