"""Bodies of chat completions, and what becomes of them when they are read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cmoe.serving.gateway.chat import ChatRequest
from cmoe.serving.gateway.conversation import Conversation, conversation
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.limits import LimitsConfig

LIMITS = LimitsConfig()
ASKING = {"model": "cmoe", "messages": [{"role": "user", "content": "Which?"}]}
URL = "data:image/png;base64,AAAA"
PICTURE = {"type": "image_url", "image_url": {"url": URL}}


NO_MORE: frozenset[str] = frozenset()
"""What an executor honours that honours no more than every one does."""


def read(samples: frozenset[str] = NO_MORE, /, **changes: Any) -> ChatRequest:
    """A request, where the executor honours `samples`."""
    return ChatRequest.read(json.dumps(ASKING | changes).encode(), LIMITS, samples)


def trial(samples: frozenset[str] = NO_MORE, /, **changes: Any) -> RequestError | None:
    """The refusal of a request, where it is refused."""
    try:
        read(samples, **changes)
    except RequestError as error:
        return error
    return None


def talk(*messages: Any) -> Conversation:
    return conversation(read(messages=list(messages)).messages, LIMITS)


def refused(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as error:
        ChatRequest.read(body, LIMITS, NO_MORE)
    assert error.value.status == 400
    assert "\n" not in error.value.message
    return error.value


def said(messages: Any = ASKING["messages"], **changes: Any) -> str:
    """What a wrong request is told; the field stands in front and in `param`."""
    error = refused(json.dumps(ASKING | {"messages": messages} | changes).encode())
    if not error.message.startswith("Unrecognized"):
        assert error.message.startswith(f"{error.param} ")
    return error.message
