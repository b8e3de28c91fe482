"""A service whose executor honours every sampling: what a client asks for comes to it, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from support.echoing import REFUSED
from support.mini_store import make_model
from support.paths import ROOT
from support.service import running_service, service_file
from support.service_client import KEY, ServiceClient

from cmoe.store.model import create_store

pytestmark = pytest.mark.ray  # which the service runs on

LIMITS = {"answers": 4, "answer_tokens": 400}
MESSAGES: Any = [{"role": "user", "content": "Which?"}]
SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", None]}}}
FORMAT = {"name": "colour", "schema": SCHEMA, "strict": True, "description": "A colour."}
STOP = "\N{GRINNING FACE}" * 4  # of four bytes each, and tokens are of three
CHAT: dict[str, Any] = {"model": "cmoe", "messages": MESSAGES, "stop": STOP, "max_tokens": 300}
RESPONSE: dict[str, Any] = {"model": "cmoe", "input": "Which?"}


class Echo(BaseModel):
    """Some of what an answer says it was asked."""

    index: int
    n: int
    json_schema: str


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """Of a service without tasks."""
    folder = tmp_path_factory.mktemp("echoing")
    model = make_model("inline")
    store = create_store(folder / "store", model, name="mini", revision="default", config={})
    file = service_file(folder, ("gateway", "executor"), limits=LIMITS, engine={"kind": "echo"})
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", os.environ.get("PYTHONPATH", ""))))
    with running_service(
        store.url,
        "--config",
        str(file),
        environment={"CMOE_API_KEYS": KEY, "PYTHONPATH": path},
        program=("-m", "support.echoing"),
    ) as running:
        yield ServiceClient(running, KEY).openai_client()


def test_what_is_asked_comes_to_the_executor(client: openai.OpenAI) -> None:
    asked = {"n": 3, "frequency_penalty": -1.5, "presence_penalty": 2}
    more = {"top_k": 5, "min_p": 0.25, "repetition_penalty": 1.5}
    form: Any = {"type": "json_schema", "json_schema": FORMAT}
    raw = client.chat.completions.with_raw_response.create(
        **CHAT, **asked, response_format=form, extra_body=more
    )
    assert "warning" not in raw.headers
    found = raw.parse()
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert [choice.finish_reason for choice in found.choices] == ["stop", "length", "stop"]
    for choice in found.choices:
        echo = json.loads(choice.message.content or "")
        assert choice.logprobs is None
        assert json.loads(echo.pop("json_schema")) == SCHEMA
        assert echo == asked | more | {
            "index": choice.index,
            "max_tokens": 300,
            "temperature": 0,
            "top_p": 1,
            "seed": None,
            "stop": [STOP],
            "logprobs": None,
        }


def test_what_is_not_asked_changes_nothing(client: openai.OpenAI) -> None:
    """What vLLM has and no field of `Sampling` is, is ignored with a warning."""
    raw = client.chat.completions.with_raw_response.create(
        **CHAT, extra_body={"ignore_eos": True, "top_k": -1}
    )
    assert raw.headers["warning"].endswith(': ignore_eos"')
    echo = json.loads(raw.parse().choices[0].message.content or "")
    assert (echo["n"], echo["top_k"], echo["logprobs"], echo["json_schema"]) == (1, 0, None, None)
    assert (echo["repetition_penalty"], echo["min_p"], echo["presence_penalty"]) == (1, 0, 0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("top", [None, 0, 2])
def test_a_stream_says_of_each_answer_what_the_whole_says(
    client: openai.OpenAI, count: int, top: int | None
) -> None:
    chances = {} if top is None else {"logprobs": True, "top_logprobs": top}
    asked: Any = {**CHAT, **chances, "n": count}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    *chunks, last = chunks
    assert last.usage == whole.usage
    assert not last.choices
    assert len(whole.choices) == count
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.delta.role for part in parts] == ["assistant", *[None] * (len(parts) - 1)]
        ends = [part.finish_reason for part in parts]
        assert ends == [*[None] * (len(parts) - 1), choice.finish_reason]
        told = [each for part in parts if part.logprobs for each in part.logprobs.content or ()]
        assert told == (choice.logprobs.content if choice.logprobs else [])
        assert (choice.logprobs is None) == (top is None)
    used = whole.usage
    assert used is not None
    assert used.completion_tokens + used.prompt_tokens == used.total_tokens
    if top is not None:  # each token has its log probability
        tokens = [each for c in whole.choices if c.logprobs for each in c.logprobs.content or ()]
        assert used.completion_tokens == len(tokens)


def test_log_probabilities_are_as_openai_documents_them(client: openai.OpenAI) -> None:
    """The tokens' bytes are those of the text together, also where a character is of two tokens."""
    found = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    (choice,) = found.choices
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    assert b"".join(bytes(each.bytes or ()) for each in tokens).decode() == choice.message.content
    assert any("\N{REPLACEMENT CHARACTER}" in each.token for each in tokens)
    assert [each.logprob for each in tokens] == [-0.5 / i for i in range(1, len(tokens) + 1)]
    for each in tokens:
        first, second = each.top_logprobs
        assert (first.logprob, first.bytes) == (-9999.0, [])
        assert (second.token, second.bytes, second.logprob) == ("o0", [*b"o0"], -1.0)


def test_the_clients_own_parsing_gets_its_schema_heeded(client: openai.OpenAI) -> None:
    chat = client.chat.completions.parse(**CHAT, response_format=Echo).choices[0].message.parsed
    response = client.responses.parse(**RESPONSE, text_format=Echo).output_parsed
    assert chat is not None
    assert chat == response
    assert {*json.loads(chat.json_schema)["properties"]} == {*Echo.model_fields}
    anything: Any = {"type": "json_object"}
    plain = client.chat.completions.create(**CHAT, response_format=anything)
    echo = json.loads(plain.choices[0].message.content or "")
    assert json.loads(echo["json_schema"]) == {"type": "object"}


def test_responses_have_what_their_protocol_has(client: openai.OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", **FORMAT}}
    asked: Any = {
        **RESPONSE,
        "text": form,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "extra_body": {"top_k": 7, "stop": STOP},
    }
    whole = client.responses.create(**asked)
    echo = json.loads(whole.output_text)
    assert (echo["top_k"], echo["logprobs"], echo["n"]) == (7, 2, 1)
    assert json.loads(echo["json_schema"]) == SCHEMA
    assert whole.top_logprobs == 2
    assert whole.text is not None
    assert whole.text.to_dict()["format"] == form["format"]
    item: Any = whole.output[0]
    (part,) = item.content
    assert b"".join(bytes(each.bytes) for each in part.logprobs).decode() == whole.output_text
    events = list(client.responses.create(**asked, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == whole.output_text
    tokens = [(each.token, each.logprob) for event in deltas for each in event.logprobs]
    assert tokens == [(each.token, each.logprob) for each in part.logprobs]
    last: Any = events[-1]
    assert last.response.output[0].content == item.content
    assert last.response.usage == whole.usage


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_executor_refuses_is_told(client: openai.OpenAI, stream: bool) -> None:
    schema = {**FORMAT, "schema": {"$ref": "#/definitions/a"}}
    form: Any = {"type": "json_schema", "json_schema": schema}
    with pytest.raises(openai.BadRequestError, match="no schema with") as refused:
        client.chat.completions.create(**CHAT, response_format=form, stream=stream)
    assert refused.value.body == {
        "message": REFUSED,
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_value",
    }


def test_the_services_own_limit_of_answers_holds(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="n is 5; 1 to 4"):
        client.chat.completions.create(**CHAT, n=5)
