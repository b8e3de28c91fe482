"""A conversation becomes a prompt: its image is loaded, and the base's processor reads both."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from cmoe.data.batches import Collator, ConversationError, ReservedTokenError
from cmoe.data.image_limits import limits_of
from cmoe.modeling.pretrained import load_config, load_processor
from cmoe.modeling.settings import ModelConfig
from cmoe.serving.bases import context_of
from cmoe.serving.gateway.decoders import Decoders
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.images import fetch
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.gateway.protocol import Conversation
from cmoe.serving.messages import Prompt
from cmoe.serving.prompts import to_arrays

T = TypeVar("T")
logger = logging.getLogger("ray.serve")

SMALL = 200_000  # pixels that are prepared in a few milliseconds


class CountedPrompt(NamedTuple):
    """A prompt, and its number of tokens."""

    prompt: Prompt
    tokens: int


class PromptBuilder:
    """Makes prompts as evaluation makes them.

    Args:
        base: The base that reads them.
        limits: The limits of a request.
    """

    def __init__(self, base: ModelConfig, limits: LimitsConfig) -> None:
        self._limits = limits
        self._context = context_of(load_config(base.path, revision=base.revision))
        processor = load_processor(base.path, revision=base.revision, pad=base.pad)
        self._collator = Collator(processor, self._context, 1)
        image_limits = limits_of(processor, limits.image)
        self._resizing, self._decoders = image_limits.resizing, Decoders(limits, image_limits)

    async def build(self, conversation: Conversation, answer_tokens: int) -> CountedPrompt:
        """The prompt of a conversation.

        Args:
            conversation: The conversation.
            answer_tokens: The most tokens of its answer.

        Raises:
            RequestError: The image or a text can't be used, or the prompt is too long.
        """
        image, pixels = None, 0
        for url in conversation.image_urls:
            image, pixels = await self._load_image(url)
        try:
            make = self._collator.conversation
            inputs = await _run(pixels, make, conversation.turns, image)
        except (ReservedTokenError, ConversationError) as error:
            raise RequestError(400, str(error), code="invalid_text", param="messages") from error
        except ValueError as error:  # the processor's own, about whatever it met
            logger.warning("a prompt can't be prepared: %r", error)
            raise RequestError(400, "the prompt can't be prepared", param="messages") from error
        tokens = inputs["input_ids"].shape[1]
        limit = min(self._limits.prompt_tokens, self._context - answer_tokens)
        if tokens > limit:
            raise RequestError(
                400,
                f"the prompt has {tokens} tokens; with an answer of up to {answer_tokens} at most "
                f"{limit}",
                code="context_length_exceeded",
                param="messages",
            )
        return CountedPrompt(to_arrays(inputs), tokens)

    async def _load_image(self, url: str) -> tuple[Image.Image, int]:
        """An image, and the pixels that the base's processor makes of it."""
        inline = url.startswith("data:")
        picture = await self._decoders.decode(url if inline else await fetch(url, self._limits))
        return picture, self._resizing.pixels(*picture.size)


async def _run(pixels: int, call: Callable[..., T], *arguments: Any) -> T:
    """Call in a thread where much is to be done; little is done at once, as handing it to a thread
    and back takes longer.
    """
    if pixels > SMALL:
        return await asyncio.to_thread(call, *arguments)
    return call(*arguments)
