"""Requests for OpenAI's chat completions, as far as a store can answer them.

A request is checked here field by field; what a picture is made of is checked in `pictures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cmoe.data.batches import ChatTurn
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.fields import (
    Neutral,
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
from cmoe.serving.known_keys import did_you_mean
from cmoe.serving.settings import LimitsConfig

MODEL = "cmoe"
STOPS, STOP_LENGTH = 4, 64

_TOOLS = "the model calls no tools"
_CHANCES = "chances of tokens aren't given"
_KEPT = "no answer is kept"
ASKING_NOTHING: Mapping[str, Neutral] = {
    "n": Neutral("a request has one answer", (1,)),
    "frequency_penalty": Neutral("no token is penalised", (0,)),
    "presence_penalty": Neutral("no token is penalised", (0,)),
    "logit_bias": Neutral("no token is preferred", ({},)),
    "logprobs": Neutral(_CHANCES, (False,)),
    "top_logprobs": Neutral(_CHANCES, (0,)),
    "response_format": Neutral("an answer is plain text", ({"type": "text"},)),
    "modalities": Neutral("an answer is plain text", (["text"],)),
    "audio": Neutral("an answer is plain text"),
    "tools": Neutral(_TOOLS, ([],)),
    "tool_choice": Neutral(_TOOLS, ("none", "auto")),
    "parallel_tool_calls": Neutral(_TOOLS, (True, False)),
    "functions": Neutral(_TOOLS, ([],)),
    "function_call": Neutral(_TOOLS, ("none", "auto")),
    "web_search_options": Neutral("the model doesn't search the web"),
    "reasoning_effort": Neutral("the model answers without reasoning first", ("none",)),
    "verbosity": Neutral("answers have one style", ("medium",)),
    "prediction": Neutral("answers aren't predicted"),
    "moderation": Neutral("nothing is moderated"),
    "store": Neutral(_KEPT, (False,)),
    "metadata": Neutral(_KEPT, ({},)),
    "service_tier": Neutral("all requests are served alike", ("auto", "default")),
    "prompt_cache_options": Neutral("no prompt is kept", ({}, {"mode": "implicit"})),
    "prompt_cache_retention": Neutral("no prompt is kept", ("in_memory",)),
}
"""Fields of OpenAI's that only some values of can be given: those that ask for nothing."""

SAYING_NOTHING: Mapping[str, Neutral] = {
    "refusal": Neutral("refusals aren't read", ("",)),
    "annotations": Neutral("annotations aren't read", ([],)),
    "audio": Neutral("audio isn't heard"),
    "tool_calls": Neutral(_TOOLS, ([],)),
    "function_call": Neutral(_TOOLS),
    "parsed": Neutral("an answer is plain text"),
    "reasoning": Neutral("reasoning isn't read", ("",)),
    "reasoning_content": Neutral("reasoning isn't read", ("",)),
}
"""Fields of messages, as clients send answers back."""


class Shown(NamedTuple):
    """A picture in a message."""

    url: str


@dataclass(frozen=True)
class Message:
    """What one says: texts and pictures, in their order."""

    role: str
    parts: tuple[str | Shown, ...]


def _shown(value: Any, at: str) -> Shown:
    readers = {"url": text, "detail": one_of("auto", "low", "high")}
    if isinstance(value, str):
        wrong(at, 'is a string; an object, {"url": ...}')
    return Shown(fields(value, at, readers, needed=["url"])["url"])


_PARTS: Mapping[str, Any] = {"text": text, "image_url": _shown}


def _part(value: Any, at: str) -> str | Shown:
    if not isinstance(value, dict):
        wrong(at, f"is {kind_of(value)}; an object with type, text or image_url")
    if value.get("type") is None:
        wrong(f"{at}.type", "is missing; text or image_url")
    kind = one_of(*_PARTS)(value["type"], f"{at}.type")
    readers = {"type": text, kind: _PARTS[kind]}
    part: str | Shown = fields(value, at, readers, needed=[kind])[kind]
    return part


def _content(value: Any, at: str) -> tuple[str | Shown, ...]:
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
    found = fields(value, at, readers, needed=["role"], neutral=SAYING_NOTHING)
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
        value = many(text, least=0, most=STOPS)(value, at)
        paths = [f"{at}.{i}" for i in range(len(value))]
    for each, path in zip(value, paths, strict=True):
        if not 0 < len(text(each, path)) <= STOP_LENGTH:
            wrong(path, f"has {len(each):,} characters; 1 to {STOP_LENGTH}")
    return tuple(value)


def _streaming(value: Any, at: str) -> bool:
    """Whether a stream's usage is asked for."""
    neutral = {"include_obfuscation": Neutral("events aren't padded", (False,))}
    return bool(fields(value, at, {"include_usage": flag}, neutral=neutral).get("include_usage"))


_FIELDS: Mapping[str, Any] = {
    "model": text,
    "messages": _messages,
    "stream": flag,
    "stream_options": _streaming,
    "max_tokens": whole(1, 2**31),
    "max_completion_tokens": whole(1, 2**31),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "stop": _stop,
    "seed": whole(-(2**63), 2**63 - 1),
    # Who asks, in the client's own words.
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
        usage: Whether their last one says how many tokens were used.
        max_tokens: Of the answer; None leaves it to the service.
        temperature: 0 takes the likeliest token.
        top_p: Draws among the likeliest tokens that together have this chance.
        seed: Of what is drawn.
        stop: Texts that end the answer.
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
        """A request's body.

        Raises:
            RequestError: It is no JSON, or not such a request; names the field.
        """
        given = fields(
            body_of(body), "", _FIELDS, needed=["model", "messages"], neutral=ASKING_NOTHING
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
    """The conversation of a request for its task; errors as in `ChatRequest.read`."""
    return tuple(
        fields(body_of(body), "", {"messages": _messages}, needed=["messages"])["messages"]
    )


class Conversation(NamedTuple):
    """What is asked, and the URLs of its pictures."""

    turns: list[ChatTurn]
    pictures: list[str]


def conversation(messages: Sequence[Message], limits: LimitsConfig) -> Conversation:
    """What a request's messages say.

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
    pictures: list[str] = []
    for index, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        urls = [part.url for part in message.parts if isinstance(part, Shown)]
        if urls and role != "user":
            raise RequestError(
                400,
                f"messages.{index}: a picture in a message of the {role}; only users show them",
                param=f"messages.{index}.content",
            )
        pictures += urls
        turns.append(ChatTurn(role, _spoken(message.parts)))
    if len(pictures) > 1:
        raise RequestError(
            400,
            f"{len(pictures)} pictures; a conversation is about one at most",
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
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
        raise RequestError(
            400,
            f"the roles are {', '.join(roles)}; a system message may come first, then users and "
            "assistants take turns",
            param="messages",
        )
    if spoken[-1] != "user":
        raise RequestError(400, "the last message must be a user's", param="messages")
    if not any(part and part.strip() for part in turns[-1].parts):
        raise RequestError(400, "the question is empty", param="messages")
    return Conversation(turns, pictures)


def _spoken(parts: Sequence[str | Shown]) -> tuple[str | None, ...]:
    """A turn's texts and its picture's place; texts that follow each other become one."""
    spoken: list[str | None] = []
    for part in parts:
        if isinstance(part, Shown):
            spoken.append(None)
        elif spoken and spoken[-1] is not None:
            spoken[-1] += f"\n{part}"
        else:
            spoken.append(part)
    return tuple(spoken)


class Asked(NamedTuple):
    """How an answer is wanted. `task` is None where it is to be located."""

    task: str | None
    tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]


def asked(request: ChatRequest, limits: LimitsConfig) -> Asked:
    """A request's settings, with what holds where it says nothing: the likeliest answer.

    Raises:
        RequestError: The model is unknown, or a setting is over its limit.
    """
    name, _, task = request.model.partition(":")
    if name != MODEL or request.model.endswith(":"):
        raise no_model(request.model)
    tokens = request.max_tokens or limits.answer_default
    if tokens > limits.answer_tokens:
        raise RequestError(
            400,
            f"max_tokens is {tokens}; at most {limits.answer_tokens}",
            code="max_tokens_too_large",
            param="max_tokens",
        )
    return Asked(
        task=task or None,
        tokens=tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
    )


def no_model(name: str, tasks: Iterable[str] = ()) -> RequestError:
    """OpenAI's answer to a model that it doesn't have, where there are such tasks."""
    hint = did_you_mean(name, [MODEL, *(f"{MODEL}:{task}" for task in tasks)])
    return RequestError(
        404,
        f"The model `{name:.200}` does not exist; /v1/models lists those that do{hint}",
        code="model_not_found",
        param="model",
    )
