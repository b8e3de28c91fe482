"""Answers as OpenAI's chat completions, whole or in chunks."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4


class Completion:
    """One chat completion, whole or in chunks.

    Args:
        model: The model that the request names.
        fingerprint: Name of the store's version.
        found: Task, score and store version; every object has them as `cmoe`.
        counted: Whether chunks have the key `usage`, which is null in all but the last.

    Attributes:
        task: Name of the task that answers, or `base`.
    """

    def __init__(
        self, model: str, fingerprint: str, found: Mapping[str, Any], *, counted: bool = False
    ) -> None:
        self.task: str = found["task"] or "base"
        self._common = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
            "cmoe": dict(found),
        }
        self._usage: dict[str, Any] = {"usage": None} if counted else {}

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
        return self._chunk_event({"choices": [choice]})

    def spent(self, prompt: int, tokens: int) -> str:
        """The last chunk of a stream whose usage was asked for."""
        return self._chunk_event({"choices": [], "usage": usage(prompt, tokens)})

    def _chunk_event(self, values: Mapping[str, Any]) -> str:
        return event({"object": "chat.completion.chunk", **self._common, **self._usage, **values})


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
