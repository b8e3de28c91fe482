"""What a service is configured with: its store, its limits, who may ask."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from cmoe.common.bounds import require
from cmoe.data.image_limits import FORMATS, ImageLimits
from cmoe.modeling.settings import ModelConfig
from cmoe.serving.known_keys import require_known

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class LimitsConfig:
    """What a request may be. All of it is checked before anything is decoded or allocated for it.

    Attributes:
        body_bytes: Of a request's body.
        messages: Of a conversation.
        text_bytes: Of all its texts together, in UTF-8.
        prompt_tokens: Of the whole prompt, the picture's included; with the answer's never more
            than the base's own context.
        answer_tokens: That a request may ask for.
        answer_default: Where it doesn't ask.
        picture_bytes: Of a picture's file.
        picture_pixels: Of a picture, and of the largest one that the base's processor makes of it:
            padded to a square, or its shorter side scaled up. A pixel takes three bytes when it is
            decoded, and some more while it is prepared.
        picture_side: Pixels that each side needs at least.
        formats: Of pictures, as Pillow names them; all or some of JPEG, PNG, WEBP, GIF and BMP.
        hosts: From which pictures are fetched by URL; none are by default. A host is reached only
            where its name stands for public addresses, without redirects.
        fetch_s: Seconds that fetching a picture may take.
        in_flight: Requests of a gateway replica that are being answered; more get 429.
        deadline_s: Seconds until an answer must have ended; 504 behind it.
    """

    body_bytes: int = 12 * 2**20
    messages: int = 32
    text_bytes: int = 16_384
    prompt_tokens: int = 4096
    answer_tokens: int = 512
    answer_default: int = 64
    picture_bytes: int = 8 * 2**20
    picture_pixels: int = 16_000_000
    picture_side: int = 2
    formats: tuple[str, ...] = FORMATS
    hosts: tuple[str, ...] = ()
    fetch_s: float = 5.0
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
        if not self.formats or (other := sorted({*self.formats} - {*FORMATS})):
            raise ValueError(
                f"limits.formats has {', '.join(other) if self.formats else 'none'}; pictures may "
                f"be of {', '.join(FORMATS)}"
            )

    @property
    def image(self) -> ImageLimits:
        """Those of a picture."""
        return ImageLimits(
            file_bytes=self.picture_bytes,
            pixels=self.picture_pixels,
            side=self.picture_side,
            processed=self.picture_pixels,
            formats=self.formats,
        )


@dataclass(frozen=True)
class EngineConfig:
    """How a replica answers.

    Attributes:
        max_batch: Answers that run together at most.
        max_tokens: Tokens in the batch's cache at most, padding included. A request waits until it
            fits, with the longest answer that it may get.
        join_at_once: Prompts read in one pass; those that run wait for it.
        join_wait_s: Seconds that a prompt may wait for others to be read with, while answers run:
            several cost little more than one.
        stuck_s: Seconds that a pass may take before the replica counts as unhealthy.
    """

    max_batch: int = 32
    max_tokens: int = 65_536
    join_at_once: int = 16
    join_wait_s: float = 0.03
    stuck_s: float = 60.0

    def __post_init__(self) -> None:
        require(self, "engine", "max_batch", "max_tokens", "join_at_once", least=1)
        require(self, "engine", "stuck_s", above=0)
        require(self, "engine", "join_wait_s", least=0)


@dataclass(frozen=True)
class AuthConfig:
    """Who may ask.

    Attributes:
        required: Whether a key is needed. Without one the service must listen on loopback alone.
        keys_file: sha256 of a key in hex on each line; what follows it is a comment. The variable
            `CMOE_API_KEYS` may hold further ones, between commas.
    """

    required: bool = True
    keys_file: str | None = None


@dataclass(frozen=True)
class ServeConfig:
    """A service.

    Attributes:
        store: Folder or `s3://` prefix of the log that answers.
        model: Its base; null takes the one that the store was written with.
        device: Of locator and executors; null takes the GPU where a replica has one.
        reject_unknown: Let the base alone answer a sample that no task claims; else the likeliest
            task answers it, as in the benchmark.
        poll_s: Seconds between two looks for new primitives.
        batch: Samples that are located together at most.
        locating: Such groups of a gateway replica that are at the locators at a time: fewer make
            larger groups, more keep more locator replicas busy.
        limits: What a request may be.
        engine: How an executor answers.
        auth: Who may ask.
    """

    store: str
    model: ModelConfig | None = None
    device: str | None = None
    reject_unknown: bool = True
    poll_s: float = 2.0
    batch: int = 32
    locating: int = 1
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)

    def __post_init__(self) -> None:
        needed = self.limits.prompt_tokens + self.limits.answer_tokens
        if needed > self.engine.max_tokens:
            raise ValueError(
                f"limits.prompt_tokens and limits.answer_tokens are {needed} together; at most "
                f"engine.max_tokens, {self.engine.max_tokens}"
            )
        require(self, "", "poll_s", above=0)
        require(self, "", "batch", "locating", least=1)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ServeConfig:
        """From a plain tree, as Ray's file of a service has it.

        Raises:
            ValueError: An unknown key, a value of another kind, or one that can't be.
        """
        from jsonargparse import ArgumentParser

        require_known(values, cls, "args")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, None)
        try:
            made = parser.instantiate(parser.parse_object(dict(values)))
        except Exception as error:  # jsonargparse's own kinds
            raise ValueError(f"args: {error}") from error
        return cls(**{each.name: made[each.name] for each in fields(cls)})
