"""OpenAI's chat completions, as far as a store can answer them: requests and answers.

A request is checked here field by field; its image is checked in `images`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self
from uuid import uuid4

from cmoe.serving.gateway.conversation import (
    ROLES,
    ImageUrl,
    Message,
    PartKind,
    Text,
    as_text,
    content,
)
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.fields import (
    Unsupported,
    body_of,
    fields,
    flag,
    many,
    number,
    one_of,
    text,
    whole,
    wrong,
)
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.gateway.protocol import (
    CHANCES,
    FIELDS,
    TOOLS,
    UNSUPPORTED,
    GenerationRequest,
    Usage,
    event,
    logprobs_of,
    read_body,
    task_of,
)
from cmoe.serving.gateway.sampling import (
    HONOURED,
    PLAIN_TEXT,
    ignored_of,
    read_top_logprobs,
    sampling_of,
    text_format,
)
from cmoe.serving.messages import AnswerPart, Finish, TokenLogprob

PLAIN = "an answer is plain text"
UNSUPPORTED_FIELDS: Mapping[str, Unsupported] = {
    **UNSUPPORTED,
    "n": Unsupported("a request has one answer", (1,)),
    "best_of": Unsupported("a request has one answer", (1,)),
    "frequency_penalty": Unsupported("no token is penalised", (0,)),
    "presence_penalty": Unsupported("no token is penalised", (0,)),
    "logit_bias": Unsupported("no token is preferred", ({},)),
    "logprobs": Unsupported(CHANCES, (False,)),
    "prompt_logprobs": Unsupported(CHANCES),
    "response_format": Unsupported(PLAIN, ({"type": "text"},)),
    "modalities": Unsupported(PLAIN, (["text"],)),
    "audio": Unsupported(PLAIN),
    "functions": Unsupported(TOOLS, ([],)),
    "function_call": Unsupported(TOOLS, ("none", "auto")),
    "web_search_options": Unsupported("the model doesn't search the web"),
    "reasoning_effort": Unsupported("the model answers without reasoning first", ("none",)),
    "include_reasoning": Unsupported("the model answers without reasoning", (True, False)),
    "verbosity": Unsupported("answers have one style", ("medium",)),
    "prediction": Unsupported("answers aren't predicted"),
}
"""Fields that aren't supported, with the values that change nothing and are taken."""

UNSUPPORTED_IN_MESSAGES: Mapping[str, Unsupported] = {
    "refusal": Unsupported("refusals aren't read", ("",)),
    "annotations": Unsupported("annotations aren't read", ([],)),
    "audio": Unsupported("audio isn't heard"),
    "tool_calls": Unsupported(TOOLS, ([],)),
    "function_call": Unsupported(TOOLS),
    "parsed": Unsupported("an answer is plain text"),
    "reasoning": Unsupported("reasoning isn't read", ("",)),
    "reasoning_content": Unsupported("reasoning isn't read", ("",)),
}
"""Such fields of messages, as clients send answers back."""


# Requests


def _image_url(value: Any, at: str) -> ImageUrl:
    readers = {"url": text, "detail": one_of("auto", "low", "high")}
    if isinstance(value, str):
        wrong(at, 'is a string; an object, {"url": ...}')
    return ImageUrl(fields(value, at, readers, needed=["url"])["url"], f"{at}.url")


_content = content(
    {"text": PartKind("text", as_text), "image_url": PartKind("image_url", _image_url)}
)


def _message(value: Any, at: str) -> Message:
    readers = {"role": one_of(*ROLES), "content": _content, "name": text}
    found = fields(value, at, readers, needed=["role"], unsupported=UNSUPPORTED_IN_MESSAGES)
    at = f"{at}.content"
    # Null is what one says who says nothing; no key at all, except an assistant's, is a mistake.
    if found["role"] != "assistant" and "content" not in value:
        wrong(at, "is missing")
    return Message(found["role"], found.get("content", (Text("", at),)), at)


_messages = many(_message)


class _StreamOptions(NamedTuple):
    usage: bool = False
    obfuscated: bool = False


def _stream_options(value: Any, at: str) -> _StreamOptions:
    found = fields(value, at, {"include_usage": flag, "include_obfuscation": flag})
    return _StreamOptions(
        found.get("include_usage", False), found.get("include_obfuscation", False)
    )


_FIELDS: Mapping[str, Any] = {
    **FIELDS,
    "messages": _messages,
    "stream_options": _stream_options,
    "max_tokens": whole(1),
    "max_completion_tokens": whole(1),
}


@cache
def _readers(samples: frozenset[str], answers: int, schema_bytes: int) -> Mapping[str, Any]:
    """The fields' readers, where the executor honours `samples`."""
    sampled = {
        **HONOURED,
        "frequency_penalty": number(-2, 2),
        "presence_penalty": number(-2, 2),
        "n": whole(1, answers),
        "logprobs": flag,
    }
    found = {**_FIELDS, **{name: read for name, read in sampled.items() if name in samples}}
    if "logprobs" in samples:
        found["top_logprobs"] = read_top_logprobs
    if "json_schema" in samples:
        found["response_format"] = text_format(schema_bytes, nested=True)
    return found


@dataclass(frozen=True)
class ChatRequest(GenerationRequest):
    """A request for a chat completion.

    Attributes:
        usage: Whether a last chunk says how many tokens were used.
    """

    MESSAGES: ClassVar[str] = "messages"

    usage: bool

    @classmethod
    def read(cls, body: bytes, limits: LimitsConfig, samples: frozenset[str]) -> Self:
        readers = _readers(samples, limits.answers, limits.schema_bytes)
        given = read_body(body, readers, UNSUPPORTED_FIELDS, ["model", "messages"])
        stream = given.get("stream", False)
        options = given.get("stream_options", _StreamOptions())
        if options.usage and not stream:
            raise RequestError(400, "stream_options need stream", param="stream_options")
        tokens = given.get("max_completion_tokens", given.get("max_tokens"))
        return cls(
            model=given["model"],
            messages=tuple(given["messages"]),
            stream=stream,
            obfuscated=options.obfuscated,
            sampling=sampling_of(
                given,
                tokens,
                limits,
                samples,
                logprobs=given.get("logprobs", False),
                schema=given.get("response_format", PLAIN_TEXT).schema,
            ),
            ignored=ignored_of(given, samples),
            usage=options.usage,
        )

    def answer(self, version: str, found: Mapping[str, Any]) -> Completion:
        return Completion(self, version, found)


def read_located(body: bytes) -> tuple[Message, ...]:
    """The messages of a request to be located; errors as in `ChatRequest.read`."""
    found = fields(body_of(body), "", {"messages": _messages}, needed=["messages"])
    return tuple(found["messages"])


def read_explained(body: bytes) -> tuple[str, tuple[Message, ...]]:
    """Task and messages of a request to tell whose experts work; errors as in `ChatRequest.read`.

    Raises:
        RequestError: The model names no task.
    """
    readers = {"model": text, "messages": _messages}
    found = fields(body_of(body), "", readers, needed=[*readers])
    task = task_of(found["model"])
    if task is None:
        wrong("model", "is cmoe; a task's, as cmoe: and the task that an answer names")
    return task, tuple(found["messages"])


# Answers


class Completion:
    """One chat completion, whole or in chunks: a choice for each answer.

    Args:
        request: What was asked.
        version: Name of the store's version that answers.
        found: Task, score and store version; every object has them as `cmoe`.

    Attributes:
        task: Name of the task that answers, or `base`.
    """

    def __init__(self, request: ChatRequest, version: str, found: Mapping[str, Any]) -> None:
        self.task: str = found["task"] or "base"
        self._common = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": version,
            "cmoe": dict(found),
        }
        self._request, self._begun = request, set[int]()
        # Chunks have the key only where it was asked for; it is null in all but the last.
        self._usage: dict[str, Any] = {"usage": None} if request.usage else {}

    def whole(self, parts: Sequence[AnswerPart], usage: Usage) -> dict[str, Any]:
        kind = {"object": "chat.completion"}
        choices = [self._whole(part) for part in parts]
        return kind | self._common | {"choices": choices, "usage": _usage(usage)}

    def _whole(self, part: AnswerPart) -> dict[str, Any]:
        asked = self._request.sampling.logprobs is not None
        return {
            "index": part.index,
            "message": {"role": "assistant", "content": part.text, "refusal": None},
            "finish_reason": part.finish,
            "logprobs": _logprobs(part.logprobs) if asked else None,
        }

    def add(self, part: AnswerPart) -> str:
        index, text, tokens, told = part.index, part.text, part.logprobs, ""
        if index not in self._begun:
            self._begun.add(index)
            told = self._choice(index, {"role": "assistant", "content": text}, tokens)
            text, tokens = "", ()
        if text or tokens or part.finish:
            told += self._choice(index, {"content": text} if text else {}, tokens, part.finish)
        return told

    def end(self, usage: Usage) -> str:
        last = ""
        if self._request.usage:
            last = self._chunk({"choices": [], "usage": _usage(usage)})
        return f"{last}data: [DONE]\n\n"

    def fail(self, error: RequestError) -> str:
        return event(error.body())

    def _choice(
        self,
        index: int,
        delta: Mapping[str, Any],
        tokens: Sequence[TokenLogprob],
        finish: Finish | None = None,
    ) -> str:
        logprobs = _logprobs(tokens) if tokens else None
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return self._chunk({"choices": [choice]})

    def _chunk(self, values: Mapping[str, Any]) -> str:
        chunk = {"object": "chat.completion.chunk", **self._common, **self._usage, **values}
        return event(chunk, obfuscated=self._request.obfuscated)


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": logprobs_of(tokens), "refusal": None}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": sum(usage),
    }
