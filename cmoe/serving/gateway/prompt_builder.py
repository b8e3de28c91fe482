"""A conversation becomes a prompt: its images are loaded, and the base's processor reads both."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from cmoe.data.batches import ChatTurn, Collator, ConversationError, ReservedTokenError
from cmoe.data.image_limits import limits_of
from cmoe.modeling.pretrained import load_config, load_processor
from cmoe.modeling.settings import ModelConfig
from cmoe.serving.bases import context_of
from cmoe.serving.gateway.conversation import Conversation, ImageUrl
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.gateway.pictures.decoders import Decoders
from cmoe.serving.gateway.pictures.images import fetch
from cmoe.serving.messages import Prompt, WrittenPrompt
from cmoe.serving.prompts import to_arrays, to_written

T = TypeVar("T")
logger = logging.getLogger("ray.serve")

TOO_LONG = "context_length_exceeded"
SMALL = 200_000  # pixels that are prepared in a few milliseconds


class Loaded(NamedTuple):
    """A conversation whose texts are fit to be read, and whose images are decoded.

    Attributes:
        images: Stand where the turns have their places.
        pixels: That the base's processor makes of them.
        at: Path of the messages in the body.
    """

    images: tuple[Image.Image, ...]
    pixels: int
    at: str

    def only(self, images: slice) -> Loaded:
        """With some of the images."""
        return self._replace(images=self.images[images])


class CountedPrompt(NamedTuple):
    """A prompt.

    Attributes:
        prompt: The base's inputs.
        tokens: Number of its tokens.
        room: Tokens that the base's context leaves for an answer; at least 1.
        written: The same for an executor that prepares images itself; None for others.
    """

    prompt: Prompt
    tokens: int
    room: int
    written: WrittenPrompt | None


class PromptBuilder:
    """Makes prompts as evaluation makes them.

    Args:
        base: The base that reads them.
        limits: The limits of a request.
        writes: Whether the executor prepares images itself.
    """

    def __init__(self, base: ModelConfig, limits: LimitsConfig, *, writes: bool) -> None:
        self._limits, self._writes = limits, writes
        self._context = context_of(load_config(base.path, revision=base.revision))
        processor = load_processor(base.path, revision=base.revision, pad=base.pad)
        self._collator = Collator(processor, self._context, 1)
        self._pad = base.pad
        image_limits = limits_of(processor, limits.image)
        self._resizing, self._decoders = image_limits.resizing, Decoders(limits, image_limits)

    async def load(self, conversation: Conversation) -> Loaded:
        """Check a conversation's texts, and decode its images.

        Raises:
            RequestError: An image or a text can't be used.
        """
        for text in conversation.texts:
            if told := self._collator.texts.wrong(text.text):
                raise RequestError(400, f"the text {told}", code="invalid_text").about(text.at)
        images, pixels, most = [], 0, self._limits.picture_pixels
        for each in conversation.images:
            image, more = await self._load_image(each)
            images.append(image)
            pixels += more
            if len(images) > 1 and pixels > most:
                told = f"the images together have {pixels:,} pixels when prepared; at most {most:,}"
                raise RequestError(400, told, code="image_too_large").about(each.at)
        return Loaded(tuple(images), pixels, conversation.at)

    async def prompt(self, loaded: Loaded, turns: Sequence[ChatTurn]) -> CountedPrompt:
        """A prompt about loaded images.

        Args:
            loaded: What is loaded of the conversation.
            turns: Of the conversation, all or some.

        Raises:
            RequestError: The base can't be asked this, or the prompt is too long.
        """
        at = loaded.at
        try:
            text = self._collator.written(turns)
            inputs = await _run(loaded.pixels, self._collator.inputs, text, loaded.images)
        except (ReservedTokenError, ConversationError) as error:
            raise RequestError(400, str(error), code="invalid_text").about(at) from error
        except ValueError as error:  # the processor's own, about whatever it met
            logger.warning("a prompt can't be prepared: %r", error)
            raise RequestError(400, "the prompt can't be prepared").about(at) from error
        tokens = inputs["input_ids"].shape[1]
        limit = min(self._limits.prompt_tokens, self._context - 1)
        if tokens > limit:
            told = f"the prompt has {tokens} tokens; with an answer of one token at most {limit}"
            raise RequestError(400, told, code=TOO_LONG).about(at)
        written = None
        if self._writes:
            written = to_written(text, loaded.images, self._collator.processor, pad=self._pad)
        return CountedPrompt(to_arrays(inputs), tokens, self._context - tokens, written)

    async def _load_image(self, image: ImageUrl) -> tuple[Image.Image, int]:
        """An image, and the pixels that the base's processor makes of it."""
        inline = image.url.startswith("data:")
        try:
            data = image.url if inline else await fetch(image.url, self._limits)
            picture = await self._decoders.decode(data)
        except RequestError as error:
            raise error.about(image.at) from error
        return picture, self._resizing.pixels(*picture.size)


async def _run(pixels: int, call: Callable[..., T], *arguments: Any) -> T:
    """Call in a thread where much is to be done; little is done at once, as handing it to a thread
    and back takes longer.
    """
    if pixels > SMALL:
        return await asyncio.to_thread(call, *arguments)
    return call(*arguments)
