"""Requests for OpenAI's chat completions, as far as a store can answer them.

A request is checked here field by field; its image is checked in `images`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cmoe.common.nearest import did_you_mean, near
from cmoe.data.batches import ChatTurn
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.fields import (
    Unsupported,
    body_of,
    fields,
    flag,
    kind_of,
    many,
    number,
    one_of,
    text,
    whole,
    wrong,
)
from cmoe.serving.gateway.limits import MAX_STOP_LENGTH, MAX_STOPS, LimitsConfig
from cmoe.serving.messages import Sampling

MODEL = "cmoe"

_TOOLS = "the model calls no tools"
_CHANCES = "chances of tokens aren't given"
_KEPT = "no answer is kept"
UNSUPPORTED_FIELDS: Mapping[str, Unsupported] = {
    "n": Unsupported("a request has one answer", (1,)),
    "frequency_penalty": Unsupported("no token is penalised", (0,)),
    "presence_penalty": Unsupported("no token is penalised", (0,)),
    "logit_bias": Unsupported("no token is preferred", ({},)),
    "logprobs": Unsupported(_CHANCES, (False,)),
    "top_logprobs": Unsupported(_CHANCES, (0,)),
    "response_format": Unsupported("an answer is plain text", ({"type": "text"},)),
    "modalities": Unsupported("an answer is plain text", (["text"],)),
    "audio": Unsupported("an answer is plain text"),
    "tools": Unsupported(_TOOLS, ([],)),
    "tool_choice": Unsupported(_TOOLS, ("none", "auto")),
    "parallel_tool_calls": Unsupported(_TOOLS, (True, False)),
    "functions": Unsupported(_TOOLS, ([],)),
    "function_call": Unsupported(_TOOLS, ("none", "auto")),
    "web_search_options": Unsupported("the model doesn't search the web"),
    "reasoning_effort": Unsupported("the model answers without reasoning first", ("none",)),
    "verbosity": Unsupported("answers have one style", ("medium",)),
    "prediction": Unsupported("answers aren't predicted"),
    "moderation": Unsupported("nothing is moderated"),
    "store": Unsupported(_KEPT, (False,)),
    "metadata": Unsupported(_KEPT, ({},)),
    "service_tier": Unsupported("all requests are served alike", ("auto", "default")),
    "prompt_cache_options": Unsupported("no prompt is kept", ({}, {"mode": "implicit"})),
    "prompt_cache_retention": Unsupported("no prompt is kept", ("in_memory",)),
}
"""Fields of OpenAI's that aren't supported, with the values that change nothing and are taken."""

UNSUPPORTED_IN_MESSAGES: Mapping[str, Unsupported] = {
    "refusal": Unsupported("refusals aren't read", ("",)),
    "annotations": Unsupported("annotations aren't read", ([],)),
    "audio": Unsupported("audio isn't heard"),
    "tool_calls": Unsupported(_TOOLS, ([],)),
    "function_call": Unsupported(_TOOLS),
    "parsed": Unsupported("an answer is plain text"),
    "reasoning": Unsupported("reasoning isn't read", ("",)),
    "reasoning_content": Unsupported("reasoning isn't read", ("",)),
}
"""Such fields of messages, as clients send answers back."""


class ImageUrl(NamedTuple):
    """An image in a message."""

    url: str


@dataclass(frozen=True)
class Message:
    """One message: texts and images, in their order."""

    role: str
    parts: tuple[str | ImageUrl, ...]


def _image_url(value: Any, at: str) -> ImageUrl:
    readers = {"url": text, "detail": one_of("auto", "low", "high")}
    if isinstance(value, str):
        wrong(at, 'is a string; an object, {"url": ...}')
    return ImageUrl(fields(value, at, readers, needed=["url"])["url"])


_PARTS: Mapping[str, Any] = {"text": text, "image_url": _image_url}


def _part(value: Any, at: str) -> str | ImageUrl:
    if not isinstance(value, dict):
        wrong(at, f"is {kind_of(value)}; an object with type, text or image_url")
    if value.get("type") is None:
        wrong(f"{at}.type", "is missing; text or image_url")
    kind = one_of(*_PARTS)(value["type"], f"{at}.type")
    readers = {"type": text, kind: _PARTS[kind]}
    part: str | ImageUrl = fields(value, at, readers, needed=[kind])[kind]
    return part


def _content(value: Any, at: str) -> tuple[str | ImageUrl, ...]:
    if isinstance(value, str):
        return (text(value, at),)
    if not isinstance(value, list):
        wrong(at, f"is {kind_of(value)}; a string, or a list of parts")
    return tuple(many(_part)(value, at))


def _message(value: Any, at: str) -> Message:
    readers = {
        "role": one_of("system", "developer", "user", "assistant"),
        "content": _content,
        "name": text,
    }
    found = fields(value, at, readers, needed=["role"], unsupported=UNSUPPORTED_IN_MESSAGES)
    if found["role"] == "assistant":  # who may have said nothing
        found.setdefault("content", ("",))
    if "content" not in found:
        wrong(f"{at}.content", "is missing")
    return Message(found["role"], found["content"])


_messages = many(_message)


def _stop(value: Any, at: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value, paths = [value], [at]
    else:
        value = many(text, least=0, most=MAX_STOPS)(value, at)
        paths = [f"{at}.{i}" for i in range(len(value))]
    for each, path in zip(value, paths, strict=True):
        if not 0 < len(text(each, path)) <= MAX_STOP_LENGTH:
            wrong(path, f"has {len(each):,} characters; 1 to {MAX_STOP_LENGTH}")
    return tuple(value)


def _wants_usage(value: Any, at: str) -> bool:
    """Whether a stream is to end with its usage."""
    unsupported = {"include_obfuscation": Unsupported("events aren't padded", (False,))}
    return bool(
        fields(value, at, {"include_usage": flag}, unsupported=unsupported).get("include_usage")
    )


_FIELDS: Mapping[str, Any] = {
    "model": text,
    "messages": _messages,
    "stream": flag,
    "stream_options": _wants_usage,
    "max_tokens": whole(1, 2**31),
    "max_completion_tokens": whole(1, 2**31),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "stop": _stop,
    "seed": whole(-(2**63), 2**63 - 1),
    # Names that the client gives its user or its request.
    "user": text,
    "safety_identifier": text,
    "prompt_cache_key": text,
}


@dataclass(frozen=True)
class ChatRequest:
    """A request for a chat completion.

    Attributes:
        model: `cmoe`, or `cmoe:` and a task.
        messages: At least one.
        stream: Whether the answer comes in chunks.
        usage: Whether a last chunk says how many tokens were used.
        max_tokens: Of the answer; None takes the service's default.
        temperature: As of `Sampling`.
        top_p: As of `Sampling`.
        seed: As of `Sampling`.
        stop: As of `Sampling`.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool
    usage: bool
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]

    @classmethod
    def read(cls, body: bytes) -> ChatRequest:
        """The request in a body.

        Raises:
            RequestError: The body isn't JSON, or isn't such a request; names the field.
        """
        given = fields(
            body_of(body), "", _FIELDS, needed=["model", "messages"], unsupported=UNSUPPORTED_FIELDS
        )
        stream, usage = given.get("stream", False), given.get("stream_options", False)
        if usage and not stream:
            raise RequestError(400, "stream_options need stream", param="stream_options")
        return cls(
            model=given["model"],
            messages=tuple(given["messages"]),
            stream=stream,
            usage=usage,
            max_tokens=given.get("max_completion_tokens", given.get("max_tokens")),
            temperature=given.get("temperature", 0.0),
            top_p=given.get("top_p", 1.0),
            seed=given.get("seed"),
            stop=given.get("stop", ()),
        )


def read_located(body: bytes) -> tuple[Message, ...]:
    """The messages of a request to be located; errors as in `ChatRequest.read`."""
    return tuple(
        fields(body_of(body), "", {"messages": _messages}, needed=["messages"])["messages"]
    )


class Conversation(NamedTuple):
    """A conversation's turns, and the URLs of its images."""

    turns: list[ChatTurn]
    image_urls: list[str]


def conversation(messages: Sequence[Message], limits: LimitsConfig) -> Conversation:
    """The conversation that a request's messages are.

    Raises:
        RequestError: They are too many or too long, or stand in an order that no chat has.
    """
    if len(messages) > limits.messages:
        raise RequestError(
            400,
            f"{len(messages)} messages; at most {limits.messages}",
            code="too_many_messages",
            param="messages",
        )
    turns: list[ChatTurn] = []
    image_urls: list[str] = []
    for index, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        urls = [part.url for part in message.parts if isinstance(part, ImageUrl)]
        if urls and role != "user":
            raise RequestError(
                400,
                f"messages.{index}: a picture in a message of the {role}; only users show them",
                param=f"messages.{index}.content",
            )
        image_urls += urls
        turns.append(ChatTurn(role, _turn_parts(message.parts)))
    if len(image_urls) > 1:
        raise RequestError(
            400,
            f"{len(image_urls)} pictures; a conversation is about one at most",
            code="too_many_images",
            param="messages",
        )
    size = sum(len(part.encode()) for turn in turns for part in turn.parts if part is not None)
    if size > limits.text_bytes:
        raise RequestError(
            400,
            f"{size:,} bytes of text; at most {limits.text_bytes:,}",
            code="text_too_long",
            param="messages",
        )
    roles = [turn.role for turn in turns]
    turn_roles = roles[1:] if roles[0] == "system" else roles
    if not turn_roles or any(
        role != ("user", "assistant")[i % 2] for i, role in enumerate(turn_roles)
    ):
        raise RequestError(
            400,
            f"the roles are {', '.join(roles)}; a system message may come first, then users and "
            "assistants take turns",
            param="messages",
        )
    if turn_roles[-1] != "user":
        raise RequestError(400, "the last message must be a user's", param="messages")
    if not any(part and part.strip() for part in turns[-1].parts):
        raise RequestError(400, "the question is empty", param="messages")
    return Conversation(turns, image_urls)


def _turn_parts(parts: Sequence[str | ImageUrl]) -> tuple[str | None, ...]:
    """A turn's texts, and None in its image's place; texts that follow each other become one."""
    joined: list[str | None] = []
    for part in parts:
        if isinstance(part, ImageUrl):
            joined.append(None)
        elif joined and joined[-1] is not None:
            joined[-1] += f"\n{part}"
        else:
            joined.append(part)
    return tuple(joined)


def named_task(request: ChatRequest) -> str | None:
    """The task that a request names by its model; None where the prompt is to be located.

    Raises:
        RequestError: The model is unknown.
    """
    name, _, task = request.model.partition(":")
    if name != MODEL or request.model.endswith(":"):
        raise no_model(request.model)
    return task or None


def sampling(request: ChatRequest, limits: LimitsConfig) -> Sampling:
    """How a request wants its answer sampled; by itself with the likeliest tokens.

    Raises:
        RequestError: The answer may become too long.
    """
    tokens = request.max_tokens or limits.answer_default
    if tokens > limits.answer_tokens:
        raise RequestError(
            400,
            f"max_tokens is {tokens}; at most {limits.answer_tokens}",
            code="max_tokens_too_large",
            param="max_tokens",
        )
    return Sampling(tokens, request.temperature, request.top_p, request.seed, request.stop)


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
