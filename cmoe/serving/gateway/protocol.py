"""What OpenAI's two protocols share, chat completions (`chat`) and responses (`responses`).

Both read a body into a `GenerationRequest`: who answers, what was said, and how the answer is
sampled. Its `answer` then writes what the service says.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from cmoe.common.nearest import did_you_mean, near
from cmoe.serving.engines.answer_text import UNFINISHED
from cmoe.serving.gateway.conversation import Message
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.fields import (
    Read,
    Unsupported,
    body_of,
    fields,
    flag,
    labels,
    text,
)
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.gateway.sampling import SAMPLED
from cmoe.serving.messages import AnswerPart, Sampling, TokenLogprob

MODEL = "cmoe"
PAD = 64  # characters: the data of an obfuscated event have a multiple of these
UNLIKELY = -9999.0  # OpenAI's log probability of a token that can't come; JSON has no infinity

# Requests

FIELDS: Mapping[str, Read[Any]] = {
    "model": text,
    "stream": flag,
    # Names that the client gives its user or its request.
    "user": text,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "metadata": labels,
    **SAMPLED,
}

TOOLS = "the model calls no tools"
CHANCES = "chances of tokens aren't given"
KEPT = "no answer is kept"
UNSUPPORTED: Mapping[str, Unsupported] = {
    "top_logprobs": Unsupported(CHANCES, (0,)),
    "tools": Unsupported(TOOLS, ([],)),
    "tool_choice": Unsupported(TOOLS, ("none", "auto")),
    "parallel_tool_calls": Unsupported(TOOLS, (True, False)),
    "moderation": Unsupported("nothing is moderated"),
    "store": Unsupported(KEPT, (False,)),
    "service_tier": Unsupported("all requests are served alike", ("auto", "default")),
    "prompt_cache_options": Unsupported("no prompt is kept", ({}, {"mode": "implicit"})),
    "prompt_cache_retention": Unsupported("no prompt is kept", ("in_memory",)),
    # vLLM's.
    "chat_template_kwargs": Unsupported("the base's chat template has no settings", ({},)),
    "add_generation_prompt": Unsupported("an answer always follows", (True,)),
    "continue_final_message": Unsupported("an answer always follows", (False,)),
    "add_special_tokens": Unsupported("the chat template writes them", (False,)),
    "echo": Unsupported("an answer doesn't repeat the question", (False,)),
}
"""Fields that aren't supported, with the values that change nothing and are taken."""


def read_body(
    body: bytes,
    readers: Mapping[str, Read[Any]],
    unsupported: Mapping[str, Unsupported],
    needed: Collection[str],
) -> dict[str, Any]:
    """The fields of a request; errors as in `fields`."""
    value = body_of(body)
    if isinstance(value, dict) and value.get("tool_choice") == "none":
        value.pop("tools", None)  # which nobody is to call
    return fields(value, "", readers, needed=needed, unsupported=unsupported)


@dataclass(frozen=True)
class GenerationRequest(ABC):
    """A request for an answer.

    Attributes:
        MESSAGES: The field that holds the conversation.
        model: `cmoe`, or `cmoe:` and a task.
        messages: At least one.
        stream: Whether the answer comes in parts.
        obfuscated: Whether the parts' sizes are to tell nothing.
        sampling: How the answer is sampled: by itself the likeliest tokens.
        ignored: Fields that ask for something and aren't heeded.
    """

    MESSAGES: ClassVar[str]

    model: str
    messages: tuple[Message, ...]
    stream: bool
    obfuscated: bool
    sampling: Sampling
    ignored: tuple[str, ...]

    @classmethod
    @abstractmethod
    def read(cls, body: bytes, limits: LimitsConfig, samples: frozenset[str]) -> Self:
        """The request in a body.

        Args:
            body: The body.
            limits: The limits of a request.
            samples: What the executor honours, as `Executor.SAMPLES`.

        Raises:
            RequestError: The body isn't JSON, or isn't such a request; names the field.
        """

    @abstractmethod
    def answer(self, version: str, found: Mapping[str, Any]) -> Answer:
        """What writes the answer.

        Args:
            version: Name of the store's version that answers.
            found: Task, score and store version, which the client gets as `cmoe`.
        """

    @property
    def task(self) -> str | None:
        """As `task_of` its model."""
        return task_of(self.model)


def task_of(model: str) -> str | None:
    """The task that a model names; None where the prompt is to be located.

    Raises:
        RequestError: The model is unknown.
    """
    name, _, task = model.partition(":")
    if name != MODEL or model.endswith(":"):
        raise no_model(model)
    return task or None


# Answers


class Usage(NamedTuple):
    """Tokens of a prompt and of its answers."""

    prompt: int
    answer: int


class Answer(Protocol):
    """Writes answers in a protocol: whole, or as server-sent events.

    Attributes:
        task: Name of the task that answers, or `base`.
    """

    task: str

    def whole(self, parts: Sequence[AnswerPart], usage: Usage) -> dict[str, Any]:
        """Each part is a whole answer, in the order of their indices."""

    def add(self, part: AnswerPart) -> str:
        """The events of a part; none where it says nothing."""

    def end(self, usage: Usage) -> str:
        """The last events, behind those of the last part."""

    def fail(self, error: RequestError) -> str:
        """The last events of an answer that broke off."""


def logprobs_of(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Log probabilities of an answer's tokens, as both protocols have them."""
    return [
        {
            **_logprob(token.text, token.bytes_, token.logprob),
            "top_logprobs": [_logprob(text, _bytes(text), value) for text, value in token.top],
        }
        for token in tokens
    ]


def _logprob(text: str, bytes_: bytes, value: float) -> dict[str, Any]:
    return {"token": text, "bytes": [*bytes_], "logprob": max(UNLIKELY, value)}


def _bytes(text: str) -> bytes:
    """An alternative's bytes; none where it is a part of a character, whose bytes aren't known."""
    return b"" if UNFINISHED in text else text.encode()


def event(values: Mapping[str, Any], *, name: str | None = None, obfuscated: bool = False) -> str:
    """A server-sent event.

    Args:
        values: Its data.
        name: Its type, for the protocol that names them.
        obfuscated: Fill the data up, so that their size doesn't tell what was said.
    """
    if obfuscated:
        size = len(json.dumps({**values, "obfuscation": ""}, ensure_ascii=False).encode())
        values = {**values, "obfuscation": token_hex(PAD)[: -size % PAD]}
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(values, ensure_ascii=False)}\n\n"


# Models


def model_names(tasks: Iterable[str]) -> list[str]:
    """The models of a service that has such tasks: the one that locates, and one for each task."""
    return [MODEL, *(f"{MODEL}:{task}" for task in tasks)]


def no_model(name: str, tasks: Iterable[str] = ()) -> RequestError:
    """OpenAI's error for a model that isn't there."""
    hint = did_you_mean(near(name, model_names(tasks)))
    return RequestError(
        404,
        f"The model `{name:.200}` does not exist; /v1/models lists those that do{hint}",
        code="model_not_found",
        param="model",
    )
