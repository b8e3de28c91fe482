"""OpenAI's responses, as far as a store can answer them: requests and answers.

No answer is kept: a client sends the whole conversation each time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self
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
    Read,
    Unsupported,
    fields,
    flag,
    kind_of,
    many,
    one_of,
    shown,
    text,
    whole,
    wrong,
)
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.gateway.protocol import (
    CHANCES,
    FIELDS,
    KEPT,
    UNSUPPORTED,
    GenerationRequest,
    Usage,
    event,
    logprobs_of,
    read_body,
)
from cmoe.serving.gateway.sampling import (
    HONOURED,
    PLAIN_TEXT,
    TextFormat,
    ignored_of,
    read_top_logprobs,
    sampling_of,
    text_format,
)
from cmoe.serving.messages import AnswerPart, Finish, TokenLogprob

WHOLE = f"{KEPT} and `input` has the whole conversation"
NO_REASONING = "the model answers without reasoning first"
UNSUPPORTED_FIELDS: Mapping[str, Unsupported] = {
    **UNSUPPORTED,
    "previous_response_id": Unsupported(WHOLE),
    "conversation": Unsupported(WHOLE),
    "context_management": Unsupported(WHOLE, ([],)),
    "background": Unsupported(KEPT, (False,)),
    "background_options": Unsupported(KEPT, ({},)),
    "prompt": Unsupported("no prompt is kept"),
    "truncation": Unsupported("nothing is left out of a conversation", ("disabled",)),
    "access_programs": Unsupported("there are none", ({},)),
    "image": Unsupported("an answer is plain text", ({},)),
}
"""Fields that aren't supported, with the values that change nothing and are taken."""

# What there may be more of in an answer, if the answer had it.
_INCLUDED = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
LOGPROBS = "message.output_text.logprobs"
"""What there is more of where the executor gives it."""


# Requests


def _image_url(value: Any, at: str) -> ImageUrl:
    return ImageUrl(text(value, at), at)


_text = PartKind(
    "text",
    as_text,
    unsupported={
        "annotations": Unsupported("annotations aren't read", ([],)),
        "logprobs": Unsupported(CHANCES, ([],)),
    },
)
_content = content(
    {
        "input_text": _text,
        "input_image": PartKind(
            "image_url",
            _image_url,
            {"detail": one_of("auto", "low", "high", "original")},
            {"file_id": Unsupported("no file is kept, so that image_url has the picture")},
        ),
        "output_text": _text,
    }
)


def _item(value: Any, at: str) -> Message:
    if not isinstance(value, dict):
        wrong(at, f"is {kind_of(value)}; an object, a message")
    if value.get("type", "message") not in ("message", None):
        reference = value["type"] == "item_reference"
        why = f", as {WHOLE}: with store false, clients send it" if reference else ""
        wrong(f"{at}.type", f"is {shown(value['type'])}; message{why}")
    readers = {
        "type": text,
        "id": text,
        "role": one_of(*ROLES),
        "content": _content,
        "status": one_of("in_progress", "completed", "incomplete"),
        "phase": one_of("commentary", "final_answer"),
    }
    found = fields(value, at, readers, needed=["role"])
    at = f"{at}.content"
    return Message(found["role"], found.get("content", (Text("", at),)), at)


def _input(value: Any, at: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", (as_text(value, at),), at),)
    if not isinstance(value, list):
        wrong(at, f"is {kind_of(value)}; a string, or a list of messages")
    return tuple(many(_item)(value, at))


def _text_settings(readers: Mapping[str, Read[Any]]) -> Read[TextFormat]:
    """A reader of what an answer's text has to be, with a reader of its `format` or without."""

    def read(value: Any, at: str) -> TextFormat:
        unsupported = {
            "format": Unsupported("an answer is plain text", (PLAIN_TEXT.given,)),
            "verbosity": Unsupported("answers have one style", ("medium",)),
        }
        found: TextFormat = fields(value, at, readers, unsupported=unsupported).get(
            "format", PLAIN_TEXT
        )
        return found

    return read


def _reasoning(value: Any, at: str) -> None:
    # A summary of no reasoning is none, whatever its style.
    style = one_of("auto", "concise", "detailed")
    summaries = {"summary": style, "generate_summary": style}
    unsupported = {
        "effort": Unsupported(NO_REASONING, ("none",)),
        "context": Unsupported(NO_REASONING, ("auto",)),
        "mode": Unsupported(NO_REASONING, ("standard",)),
    }
    fields(value, at, summaries, unsupported=unsupported)


def _obfuscated(value: Any, at: str) -> bool:
    found = fields(value, at, {"include_obfuscation": flag})
    return bool(found.get("include_obfuscation"))


_FIELDS: Mapping[str, Any] = {
    **FIELDS,
    "input": _input,
    "instructions": as_text,
    "max_output_tokens": whole(1),
    "max_tool_calls": whole(0),  # of which there are none
    "stream_options": _obfuscated,
    "include": many(one_of(*_INCLUDED), least=0),
    "text": _text_settings({}),
    "reasoning": _reasoning,
}


@cache
def _readers(samples: frozenset[str], schema_bytes: int) -> Mapping[str, Any]:
    """The fields' readers, where the executor honours `samples`."""
    found = {**_FIELDS, **{name: read for name, read in HONOURED.items() if name in samples}}
    if "logprobs" in samples:
        found["top_logprobs"] = read_top_logprobs
        found["include"] = many(one_of(*_INCLUDED, LOGPROBS), least=0)
    if "json_schema" in samples:
        found["text"] = _text_settings({"format": text_format(schema_bytes, nested=False)})
    return found


@dataclass(frozen=True)
class ResponseRequest(GenerationRequest):
    """A request for a response.

    Attributes:
        said_back: Fields of the request that its response repeats.
    """

    MESSAGES: ClassVar[str] = "input"

    said_back: Mapping[str, Any]

    @classmethod
    def read(cls, body: bytes, limits: LimitsConfig, samples: frozenset[str]) -> Self:
        readers = _readers(samples, limits.schema_bytes)
        given = read_body(body, readers, UNSUPPORTED_FIELDS, ["model", "input"])
        messages: tuple[Message, ...] = given["input"]
        instructions: Text | None = given.get("instructions")
        if instructions is not None:
            messages = (Message("system", (instructions,), instructions.at), *messages)
        format_: TextFormat = given.get("text", PLAIN_TEXT)
        sampling = sampling_of(
            given,
            given.get("max_output_tokens"),
            limits,
            samples,
            logprobs=LOGPROBS in given.get("include", ()),
            schema=format_.schema,
        )
        names = ("safety_identifier", "prompt_cache_key", "user")
        return cls(
            model=given["model"],
            messages=messages,
            stream=given.get("stream", False),
            obfuscated=given.get("stream_options", False),
            sampling=sampling,
            ignored=ignored_of(given, samples),
            said_back={
                "instructions": None if instructions is None else instructions.text,
                "max_output_tokens": sampling.max_tokens,
                "metadata": given.get("metadata", {}),
                "temperature": sampling.temperature,
                "text": {"format": format_.given, "verbosity": "medium"},
                "top_logprobs": sampling.logprobs or 0,
                "top_p": sampling.top_p,
                **{name: given[name] for name in names if name in given},
            },
        )

    def answer(self, version: str, found: Mapping[str, Any]) -> ResponseAnswer:
        return ResponseAnswer(self, found)


# Answers


class ResponseAnswer:
    """One response, whole or as events.

    Args:
        request: What was asked.
        found: Task, score and store version, which the response has as `cmoe`.

    Attributes:
        task: Name of the task that answers, or `base`.
    """

    def __init__(self, request: ResponseRequest, found: Mapping[str, Any]) -> None:
        self.task: str = found["task"] or "base"
        self._request = request
        self._item_id = f"msg_{uuid4().hex}"
        self._said, self._events = "", 0
        self._logprobs: list[TokenLogprob] = []
        self._finish: Finish | None = None
        self._common = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": request.model,
            "cmoe": dict(found),
            **request.said_back,
            # What a service that keeps nothing, calls nothing and doesn't reason has to say.
            "background": False,
            "error": None,
            "incomplete_details": None,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
        }

    def whole(self, parts: Sequence[AnswerPart], usage: Usage) -> dict[str, Any]:
        (part,) = parts
        return self._ended(_part(part.text, part.logprobs), part.finish, usage)

    def _ended(
        self, part: Mapping[str, Any], finish: Finish | None, usage: Usage
    ) -> dict[str, Any]:
        status = "completed" if finish == "stop" else "incomplete"
        reason = None if finish == "stop" else {"reason": "max_output_tokens"}
        return self._response(
            status,
            output=[self._item(status, part)],
            usage=_usage(usage),
            incomplete_details=reason,
            completed_at=int(time.time()) if finish == "stop" else None,
        )

    def add(self, part: AnswerPart) -> str:
        told = "" if self._events else self._begin()
        if part.text or part.logprobs:
            self._said += part.text
            self._logprobs += part.logprobs
            told += self._content_event(
                "response.output_text.delta", delta=part.text, logprobs=logprobs_of(part.logprobs)
            )
        self._finish = part.finish
        return told

    def _begin(self) -> str:
        return "".join(
            (
                self._event("response.created", response=self._response("in_progress")),
                self._event("response.in_progress", response=self._response("in_progress")),
                self._event(
                    "response.output_item.added", output_index=0, item=self._item("in_progress")
                ),
                self._content_event("response.content_part.added", part=_part("")),
            )
        )

    def end(self, usage: Usage) -> str:
        part = _part(self._said, self._logprobs)
        response = self._ended(part, self._finish, usage)
        return "".join(
            (
                self._content_event(
                    "response.output_text.done", text=self._said, logprobs=part["logprobs"]
                ),
                self._content_event("response.content_part.done", part=part),
                self._event(
                    "response.output_item.done", output_index=0, item=response["output"][0]
                ),
                self._event(f"response.{response['status']}", response=response),
            )
        )

    def fail(self, error: RequestError) -> str:
        told = {"code": "server_error", "message": error.message}
        item = self._item("incomplete", _part(self._said, self._logprobs))
        response = self._response("failed", output=[item], error=told)
        return self._event("response.failed", response=response)

    def _response(self, status: str, **values: Any) -> dict[str, Any]:
        return {**self._common, "status": status, "output": [], "usage": None, **values}

    def _item(self, status: str, *parts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [*parts],
        }

    def _content_event(self, kind: str, **values: Any) -> str:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **values)

    def _event(self, kind: str, **values: Any) -> str:
        numbered = {"type": kind, "sequence_number": self._events, **values}
        self._events += 1
        obfuscated = self._request.obfuscated and kind.endswith(".delta")
        return event(numbered, name=kind, obfuscated=obfuscated)


def _part(text: str, logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
    told = logprobs_of(logprobs)
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": told}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": sum(usage),
    }
