"""What gateway, locator and executor send to each other: plain values, as small as possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from cmoe.modeling.routers import BASE

Prompt = Mapping[str, NDArray[Any]]
"""The base's inputs for a batch of one: `input_ids` [1, S], `attention_mask`, the image's."""


@dataclass(frozen=True)
class Pixels:
    """An image.

    Attributes:
        size: Width and height.
        rgb: Its pixels, row by row.
    """

    size: tuple[int, int]
    rgb: bytes


@dataclass(frozen=True)
class WrittenPrompt:
    """A prompt for an executor that prepares images itself.

    Attributes:
        text: As the base's chat template writes it.
        images: In the order of their places.
    """

    text: str
    images: tuple[Pixels, ...] = ()


AnyPrompt = Prompt | WrittenPrompt
"""A prompt in the form that an executor reads."""

Finish = Literal["stop", "length"]

BEHIND = "this replica has fewer tasks than the request needs"
"""The failure of an answer that another replica may give."""


@dataclass(frozen=True)
class Location:
    """The task that a prompt belongs to.

    Attributes:
        task: Index of the primitive that answers; -1 for the base, where no task claims the prompt.
        scores: One for each task of the store; the smallest is the likeliest.
        unknown: Whether no task claims the prompt.
    """

    task: int
    scores: tuple[float, ...]
    unknown: bool

    @property
    def nearest(self) -> int:
        """Index of the likeliest task, whether it claims the prompt or not; -1 without tasks."""
        return min(range(len(self.scores)), key=self.scores.__getitem__, default=-1)

    @property
    def shares(self) -> tuple[float, ...]:
        """The softmax of the negative scores: how the tasks compare. Nothing calibrates them, so
        they aren't probabilities.
        """
        return tuple(torch.tensor(self.scores).neg().softmax(0).tolist())


@dataclass(frozen=True)
class Located:
    """A locator's reply for one prompt.

    Attributes:
        location: Where the prompt belongs.
        version: Name of the store's version that it was located among.
    """

    location: Location
    version: str


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen, and where the answer ends.

    Every executor honours the first five. The others have their default where an executor doesn't
    say that it honours them (`Executor.SAMPLES`).

    Attributes:
        max_tokens: Of an answer.
        temperature: 0 takes the likeliest token.
        top_p: Draws among the likeliest tokens that together have this probability.
        seed: Of what is drawn; None draws differently each time.
        stop: Texts that end the answer; they aren't part of it.
        top_k: Draws among so many of the likeliest tokens; 0 among all.
        min_p: Draws among tokens that have this share of the likeliest one's probability.
        repetition_penalty: Above 1, tokens of the prompt and of the answer so far get less likely;
            below, likelier.
        frequency_penalty: Taken from a token's logit as often as the answer has the token.
        presence_penalty: Taken from the logit of a token that the answer has.
        n: Number of answers.
        logprobs: Number of a token's alternatives whose log probabilities are given beside its own;
            None gives none at all.
        json_schema: Schema, in JSON, of the JSON that the answer must be; None for any text.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    n: int = 1
    logprobs: int | None = None
    json_schema: str | None = None


@dataclass(frozen=True)
class AnswerRequest:
    """A prompt on its way to an executor.

    Attributes:
        prompt: The prompt.
        task: Index of the primitive that answers; None lets the executor locate the prompt.
        min_tasks: Number of tasks that the executor must have.
        sampling: How the answer is sampled.
    """

    prompt: AnyPrompt
    task: int | None
    min_tasks: int
    sampling: Sampling


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer, and how likely it was.

    Attributes:
        text: The token's text.
        bytes_: Its own bytes: of a character that several tokens make, it has a part.
        logprob: Its log probability.
        top: The likeliest tokens in its place, each with its log probability.
    """

    text: str
    bytes_: bytes
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class AnswerPart:
    """The next part of an answer, or all of it. The answer's last part has `finish`.

    Where a request has several answers, each has parts of its own. A part with `failure` is the
    last of all of them.

    Attributes:
        text: The part's text.
        tokens: Number of the answer's tokens so far.
        task: Index of the primitive that answers; -1 for the base.
        location: The prompt's location, where the executor located it.
        queued_s: Seconds from the prompt's arrival until it was read.
        first_token_s: Seconds from the prompt's arrival until the first token.
        last_token_s: Seconds from the prompt's arrival until the latest token.
        finish: Why the answer ended; None before its end.
        failure: Why the answer broke off; None where it didn't.
        refused: Whether it broke off by what was asked, such as a schema that the executor can't
            heed: the client is told the failure.
        index: Which of the request's answers it is of.
        logprobs: Of the part's tokens, where they were asked for.
    """

    text: str = ""
    tokens: int = 0
    task: int = BASE
    location: Location | None = None
    queued_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    finish: Finish | None = None
    failure: str | None = None
    refused: bool = False
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Reply:
    """An executor's reply: a part of an answer.

    Attributes:
        part: The part.
        version: Name of the store's version that answers.
    """

    part: AnswerPart
    version: str
