"""All limits of a request: those that are settings, and those that are fixed."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cmoe.common.bounds import require
from cmoe.data.image_limits import FORMATS, ImageLimits

MAX_STOPS, MAX_STOP_LENGTH = 4, 64  # texts that end an answer, and characters of each
MAX_ITEMS = 256
"""Items of any list in a body, whatever the settings are: a body can hold 100,000 times `{}`."""
MAX_LABELS = 16  # of a request's `metadata`, as OpenAI allows
MAX_TOP_LOGPROBS = 20  # alternatives of a token, as OpenAI allows
MAX_TOP_K = 2**31 - 1
MAX_DEPTH = 100  # objects and lists in each other, of a JSON schema
DRAINED_BODIES = 4
"""A body of up to so many times its limit is read and dropped, so that its sender hears why."""
MAX_PARTS = 20_000
"""Commas, colons and opening brackets of a body, beside as many as its text may have bytes."""
HEAD_BYTES, HEAD_S = 32 * 2**10, 10.0
"""Bytes of a request's line and headers, and seconds in which they must have come."""
CONNECTIONS = 1024
"""Open connections of an HTTP proxy. Where there are more, the one that has had no request for
longest is closed; where all have one, the new one gets status 503."""


@dataclass(frozen=True)
class LimitsConfig:
    """What a request may be. All of it is checked before anything is decoded or allocated for it.

    Attributes:
        body_bytes: Bytes of a request's body.
        messages: Messages of a conversation.
        text_bytes: Bytes of all texts of a conversation together, in UTF-8.
        prompt_tokens: Tokens of a prompt, the image's included; with the answer's tokens never more
            than the base's context.
        answer_tokens: Tokens of an answer; a request that asks for more gets so many.
        answer_default: Tokens of an answer where the request doesn't say.
        answers: Answers of a request (`n`), where the executor gives more than one.
        schema_bytes: Bytes of the JSON schema that an answer must fulfil, where the executor heeds
            one, and of its description.
        images: Images of a conversation.
        picture_bytes: Bytes of an image's file.
        picture_pixels: Pixels of a conversation's images together, of each the largest that the
            base's processor makes of it when it pads it to a square or scales its shorter side up.
            A pixel takes three bytes when it is decoded, and more while it is prepared.
        picture_side: Pixels that each side of an image needs at least.
        picture_work: Pixels that decoding an image may go over, each as often as it does, a
            progressive JPEG's with every scan: 100 million take about a second.
        picture_s: Seconds of the CPU that decoding an image may take; after that its decoder is
            ended and replaced.
        decoders: Processes that decode images of up to 20 million such pixels; one more decodes
            larger ones.
        formats: Formats of images, as Pillow names them: all or some of JPEG, PNG, WEBP, GIF, BMP.
        hosts: Hosts from which images are fetched by URL; none by default. A host is reached only
            at public addresses, without redirects.
        fetch_s: Seconds that fetching an image may take.
        body_s: Seconds in which a request's body must have come; after that it gets status 408.
        bodies: Bodies that a gateway replica reads at a time. When there are more, the one that has
            been on its way longest gets status 408.
        bodies_bytes: Bytes of all bodies that are read or whose requests are in flight.
        in_flight: Requests that a gateway replica answers at a time; further ones get status 429.
        deadline_s: Seconds until an answer must have ended; after that it gets status 504.
    """

    body_bytes: int = 12 * 2**20
    messages: int = 32
    text_bytes: int = 16_384
    prompt_tokens: int = 4096
    answer_tokens: int = 512
    answer_default: int = 64
    answers: int = 8
    schema_bytes: int = 16_384
    images: int = 4
    picture_bytes: int = 8 * 2**20
    picture_pixels: int = 16_000_000
    picture_side: int = 2
    picture_work: int = 400_000_000
    picture_s: float = 6.0
    decoders: int = 2
    formats: tuple[str, ...] = FORMATS
    hosts: tuple[str, ...] = ()
    fetch_s: float = 5.0
    body_s: float = 10.0
    bodies: int = 128
    bodies_bytes: int = 384 * 2**20
    in_flight: int = 64
    deadline_s: float = 60.0

    def __post_init__(self) -> None:
        numbers = [f.name for f in fields(self) if isinstance(getattr(self, f.name), int | float)]
        require(self, "limits", *numbers, above=0)
        if self.answer_default > self.answer_tokens:
            raise ValueError(
                f"limits.answer_default is {self.answer_default}; at most limits.answer_tokens, "
                f"{self.answer_tokens}"
            )
        if self.bodies_bytes < self.body_bytes:
            raise ValueError(
                f"limits.bodies_bytes is {self.bodies_bytes:,}; at least limits.body_bytes, "
                f"{self.body_bytes:,}"
            )
        if not self.formats or (other := sorted({*self.formats} - {*FORMATS})):
            raise ValueError(
                f"limits.formats has {', '.join(other) if self.formats else 'none'}; pictures may "
                f"be of {', '.join(FORMATS)}"
            )

    @property
    def image(self) -> ImageLimits:
        """The limits of an image."""
        return ImageLimits(
            file_bytes=self.picture_bytes,
            pixels=self.picture_pixels,
            side=self.picture_side,
            processed=self.picture_pixels,
            work=self.picture_work,
            formats=self.formats,
        )
