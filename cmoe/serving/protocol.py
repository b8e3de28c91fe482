"""OpenAI's chat completions as far as a store can answer them, and what is answered.

A request is checked here field by field; what a picture is made of is checked in `pictures`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cmoe.serving.errors import RequestError
from cmoe.serving.settings import LimitsConfig

R = TypeVar("R", bound=BaseModel)

MODEL = "cmoe"
MOST = 256
"""Of anything in a list, whatever the limits are: a body holds hundreds of thousands of `{}`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class PictureURL(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class PicturePart(_Strict):
    type: Literal["image_url"]
    image_url: PictureURL


Part = Annotated[TextPart | PicturePart, Field(discriminator="type")]


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=MOST, fail_fast=True)]
    name: str | None = None


Messages = Annotated[list[Message], Field(min_length=1, max_length=MOST, fail_fast=True)]


class StreamOptions(_Strict):
    include_usage: bool = False


class ResponseFormat(_Strict):
    type: Literal["text"]


class ChatRequest(_Strict):
    """A request for a chat completion. Fields that only one value makes sense of take that."""

    model: str
    messages: Messages
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, strict=False)
    top_p: float | None = Field(None, gt=0, le=1, strict=False)
    stop: str | Annotated[list[str], Field(max_length=4, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: Literal[1] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0, strict=False)
    presence_penalty: float | None = Field(None, ge=0, le=0, strict=False)
    logprobs: Literal[False] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None


class LocateRequest(_Strict):
    """A request for the task of a conversation."""

    messages: Messages


class Conversation(NamedTuple):
    """What is asked, and the URLs of its pictures."""

    turns: list[tuple[str, str]]
    pictures: list[str]


def parsed(kind: type[R], body: bytes) -> R:
    """A request's body.

    Raises:
        RequestError: It is no JSON, or not such a request; names the field.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > MOST:  # not to be written out, one by one
            message = f"the body isn't such a request, in {error.error_count():,} places"
            raise RequestError(400, message, code="invalid_value") from error
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"Unrecognized request argument supplied: {where}"
        elif first["type"] == "json_invalid":
            raise RequestError(
                400, f"the body isn't JSON: {first['msg']}", code="bad_json"
            ) from error
        else:
            message = f"{where}: {first['msg']}" if where else str(first["msg"])
        raise RequestError(400, message, code="invalid_value", param=where or None) from error


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
    turns: list[tuple[str, str]] = []
    pictures: list[str] = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        parts = message.content
        if isinstance(parts, str):
            parts = [TextPart(type="text", text=parts)]
        urls = [part.image_url.url for part in parts if isinstance(part, PicturePart)]
        if urls and role != "user":
            raise RequestError(
                400,
                f"messages.{number}: a picture in a message of the {role}; only users show them",
                param=f"messages.{number}.content",
            )
        pictures += urls
        turns.append((role, "\n".join(p.text for p in parts if isinstance(p, TextPart))))
    if len(pictures) > 1:
        raise RequestError(
            400,
            f"{len(pictures)} pictures; a conversation is about one at most",
            code="too_many_images",
            param="messages",
        )
    size = sum(len(text.encode()) for _, text in turns)
    if size > limits.text_bytes:
        raise RequestError(
            400,
            f"{size:,} bytes of text; at most {limits.text_bytes:,}",
            code="text_too_long",
            param="messages",
        )
    roles = [role for role, _ in turns]
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
    if not turns[-1][1].strip():
        raise RequestError(400, "the question is empty", param="messages")
    return Conversation(turns, pictures)


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
    tokens = request.max_completion_tokens or request.max_tokens or limits.answer_default
    if tokens > limits.answer_tokens:
        raise RequestError(
            400,
            f"max_tokens is {tokens}; at most {limits.answer_tokens}",
            code="max_tokens_too_large",
            param="max_tokens",
        )
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if len(stop) > 4 or any(not 0 < len(text) <= 64 for text in stop):
        raise RequestError(400, "stop: at most 4 texts of 1 to 64 characters", param="stop")
    if request.stream_options and not request.stream:
        raise RequestError(400, "stream_options need stream", param="stream_options")
    return Asked(
        task=task or None,
        tokens=tokens,
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=stop,
    )


def no_model(name: str) -> RequestError:
    """OpenAI's answer to a model that it doesn't have."""
    return RequestError(
        404,
        f"The model `{name}` does not exist; /v1/models lists those that do",
        code="model_not_found",
        param="model",
    )


# What is answered


class Completion:
    """One chat completion, whole or in chunks.

    Args:
        model: As it was asked for.
        fingerprint: Of the store.
        found: Task, score and store version; goes into every object as `cmoe`.
    """

    def __init__(self, model: str, fingerprint: str, found: Mapping[str, Any]) -> None:
        self.task: str = found["task"] or "base"
        self._common = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
            "cmoe": dict(found),
        }

    def whole(self, text: str, finish: str, prompt: int, tokens: int) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        kind = {"object": "chat.completion"}
        return kind | self._common | {"choices": [choice], "usage": usage(prompt, tokens)}

    def chunk(self, text: str, finish: str | None, *, first: bool) -> str:
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if text or first:
            delta["content"] = text
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return self._sent({"choices": [choice]})

    def spent(self, prompt: int, tokens: int) -> str:
        """The last chunk of a stream that was asked for its usage."""
        return self._sent({"choices": [], "usage": usage(prompt, tokens)})

    def _sent(self, values: Mapping[str, Any]) -> str:
        return event({"object": "chat.completion.chunk", **self._common, **values})


def usage(prompt: int, tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
    }


def event(values: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
