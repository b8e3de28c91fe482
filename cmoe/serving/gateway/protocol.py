"""What OpenAI's two protocols share, chat completions (`chat`) and responses (`responses`).

Both read a body into a `GenerationRequest`: who answers, what was said, and how the answer is
sampled. Its `answer` then writes what the service says.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from secrets import token_hex
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from cmoe.common.nearest import did_you_mean, near
from cmoe.serving.gateway.conversation import Message
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.fields import (
    Read,
    Unsupported,
    asks,
    body_of,
    fields,
    flag,
    labels,
    many,
    number,
    text,
    whole,
    wrong,
)
from cmoe.serving.gateway.limits import MAX_STOP_LENGTH, MAX_STOPS, LimitsConfig
from cmoe.serving.messages import Finish, Sampling

MODEL = "cmoe"
PAD = 64  # characters: the data of an obfuscated event have a multiple of these

# Requests


def stops(value: Any, at: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value, paths = [value], [at]
    else:
        value = many(text, least=0, most=MAX_STOPS)(value, at)
        paths = [f"{at}.{i}" for i in range(len(value))]
    for each, path in zip(value, paths, strict=True):
        if not 0 < len(text(each, path)) <= MAX_STOP_LENGTH:
            wrong(path, f"has {len(each):,} characters; 1 to {MAX_STOP_LENGTH}")
    return tuple(value)


IGNORED: Mapping[str, Read[bool]] = {
    "top_k": asks(whole(-1), -1, 0),
    "min_p": asks(number(0, 1), 0),
    "repetition_penalty": asks(number(0, inf), 1),
    "length_penalty": asks(number(-inf, inf), 1),
    "use_beam_search": asks(flag, False),
    "min_tokens": asks(whole(0), 0),
    "ignore_eos": asks(flag, False),
    "stop_token_ids": asks(many(whole(0), least=0), []),
    "allowed_token_ids": asks(many(whole(0), least=0)),
    "bad_words": asks(many(text, least=0), []),
    "include_stop_str_in_output": asks(flag, False),
    "skip_special_tokens": asks(flag, True),
    "spaces_between_special_tokens": asks(flag, True),
    "truncate_prompt_tokens": asks(whole(-1), -1),
    "priority": asks(whole(-(2**63)), 0),
}
"""vLLM's fields of sampling that no executor has: they are read, and named in a header."""

FIELDS: Mapping[str, Read[Any]] = {
    "model": text,
    "stream": flag,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "stop": stops,
    "seed": whole(-(2**63), 2**63 - 1),
    # Names that the client gives its user or its request.
    "user": text,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "metadata": labels,
    **IGNORED,
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
    def read(cls, body: bytes, limits: LimitsConfig) -> Self:
        """The request in a body.

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


def sampling_of(given: Mapping[str, Any], tokens: int | None, limits: LimitsConfig) -> Sampling:
    """How a request wants its answer sampled.

    Args:
        given: The request's fields.
        tokens: The most tokens that it asks for, which the limits bound; None takes their default.
        limits: The limits of a request.
    """
    return Sampling(
        max_tokens=min(tokens or limits.answer_default, limits.answer_tokens),
        temperature=given.get("temperature", 0.0),
        top_p=given.get("top_p", 1.0),
        seed=given.get("seed"),
        stop=given.get("stop", ()),
    )


def ignored_of(given: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in IGNORED if given.get(name))


def warning(ignored: Sequence[str]) -> dict[str, str]:
    """The header that names fields that weren't heeded (RFC 7234, 5.5); none without such."""
    if not ignored:
        return {}
    told = f"ignored, as no executor has such sampling: {', '.join(ignored)}"
    return {"Warning": f'299 - "{told}"'}


# Answers


class Usage(NamedTuple):
    """Tokens of a prompt and of its answer."""

    prompt: int
    answer: int


class Answer(Protocol):
    """Writes an answer in a protocol: whole, or as server-sent events.

    Attributes:
        task: Name of the task that answers, or `base`.
    """

    task: str

    def whole(self, text: str, finish: Finish, usage: Usage) -> dict[str, Any]: ...

    def begin(self, text: str) -> str:
        """The first events, with the first part of the text."""

    def add(self, text: str) -> str:
        """The events of a further part."""

    def end(self, text: str, finish: Finish, usage: Usage) -> str:
        """The last events, with the last part."""

    def fail(self, error: RequestError) -> str:
        """The last events of an answer that broke off."""


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
