"""What clients write: what asks for nothing is taken, and a mistake is named by its path."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk, completion_create_params

from cmoe.serving.gateway.completion import Completion
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.gateway.protocol import (
    UNSUPPORTED_FIELDS,
    ChatRequest,
    Conversation,
    conversation,
    read_located,
    sampling,
)

LIMITS = LimitsConfig()
ASKING = {"model": "cmoe", "messages": [{"role": "user", "content": "Which?"}]}
URL = "data:image/png;base64,AAAA"
PICTURE = {"type": "image_url", "image_url": {"url": URL}}


def read(**changes: Any) -> ChatRequest:
    return ChatRequest.read(json.dumps(ASKING | changes).encode())


def trial(**changes: Any) -> RequestError | None:
    """The refusal of a request, where it is refused."""
    try:
        read(**changes)
    except RequestError as error:
        return error
    return None


def talk(*messages: Any) -> Conversation:
    return conversation(read(messages=list(messages)).messages, LIMITS)


def refused(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as error:
        ChatRequest.read(body)
    assert error.value.status == 400
    assert "\n" not in error.value.message
    return error.value


def said(messages: Any = ASKING["messages"], **changes: Any) -> str:
    """What a wrong request is told; the field stands in front and in `param`."""
    error = refused(json.dumps(ASKING | {"messages": messages} | changes).encode())
    if not error.message.startswith("Unrecognized"):
        assert error.message.startswith(f"{error.param} ")
    return error.message


# What asks for nothing

NEUTRAL = [
    ("stream", [None, False]),
    ("stream_options", [None, {}, {"include_usage": False}, {"include_usage": None}]),
    ("stream_options", [{"include_obfuscation": False}]),
    ("tools", [None, []]),
    ("tool_choice", [None, "none", "auto"]),
    ("parallel_tool_calls", [None, True, False]),
    ("functions", [None, []]),
    ("function_call", [None, "none", "auto"]),
    ("logit_bias", [None, {}]),
    ("logprobs", [None, False]),
    ("top_logprobs", [None, 0]),
    ("n", [None, 1, 1.0]),
    ("frequency_penalty", [None, 0, 0.0, -0.0]),
    ("presence_penalty", [None, 0, 0.0]),
    ("response_format", [None, {"type": "text"}]),
    ("modalities", [None, ["text"]]),
    ("audio", [None]),
    ("prediction", [None]),
    ("moderation", [None]),
    ("web_search_options", [None]),
    ("reasoning_effort", [None, "none"]),
    ("verbosity", [None, "medium"]),
    ("store", [None, False]),
    ("metadata", [None, {}]),
    ("service_tier", [None, "auto", "default"]),
    ("prompt_cache_options", [None, {}, {"mode": "implicit"}]),
    ("prompt_cache_retention", [None, "in_memory"]),
    ("max_tokens", [None]),
    ("max_completion_tokens", [None]),
    ("temperature", [None, 0, 0.0]),
    ("top_p", [None, 1, 1.0]),
    ("stop", [None, []]),
    ("seed", [None]),
    ("user", [None, "", "anybody"]),
    ("safety_identifier", [None, "a hash"]),
    ("prompt_cache_key", [None, "a key"]),
    ("a_field_of_tomorrow", [None]),
]


@pytest.mark.parametrize(("name", "values"), NEUTRAL)
def test_neutral_values_ask_for_nothing(name: str, values: list[Any]) -> None:
    for value in values:
        assert read(**{name: value}) == read(), value


def test_every_field_of_the_client_is_known() -> None:
    """Each is named here, and none of them is called unrecognized."""
    known = completion_create_params.CompletionCreateParamsStreaming.__annotations__
    names = {*known, *completion_create_params.CompletionCreateParamsBase.__annotations__}
    assert names - {"model", "messages"} <= {name for name, _ in NEUTRAL}
    for name in names:
        error = trial(**{name: 5})
        assert error is None or "Unrecognized" not in error.message


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("n", 3, "n is 3; a request has one answer, so that 1 or null is taken"),
        ("n", True, "n is true; a request has one answer"),
        ("tools", [{"type": "function"}], "the model calls no tools, so that [] or null is taken"),
        ("tool_choice", "required", 'so that "none", "auto" or null is taken'),
        ("logit_bias", {"5": 1}, 'logit_bias is {"5": 1}; no token is preferred'),
        ("store", True, "store is true; no answer is kept, so that false or null"),
        ("metadata", {"a": "b"}, "metadata is"),
        ("top_logprobs", 2, "top_logprobs is 2; chances of tokens aren't given"),
        ("response_format", {"type": "json_object"}, "an answer is plain text"),
        ("modalities", ["text", "audio"], "an answer is plain text"),
        ("prediction", {"type": "content", "content": "x" * 999}, "..."),
        ("service_tier", "flex", "service_tier is"),
        ("reasoning_effort", "high", "reasoning_effort is"),
        ("frequency_penalty", 0.5, "no token is penalised, so that 0 or null"),
        ("stream_options", {"include_obfuscation": True}, "stream_options.include_obfuscation is"),
    ],
)
def test_what_cannot_be_given_is_refused(name: str, value: Any, cause: str) -> None:
    message = said(**{name: value})
    assert message.startswith(name)
    assert cause in message
    assert len(message) < 250


def test_no_neutral_value_is_another_in_json() -> None:
    """`false` isn't 0 and `true` isn't 1, though Python says so."""
    for name, value in (("n", True), ("store", 0), ("frequency_penalty", False), ("logprobs", 0)):
        assert name in UNSUPPORTED_FIELDS
        assert said(**{name: value})


def test_numbers_are_numbers_of_json() -> None:
    assert read(temperature=1).temperature == 1.0
    assert read(max_tokens=5.0).max_tokens == 5
    assert read(max_tokens=3, max_completion_tokens=4).max_tokens == 4
    assert sampling(read(top_p=0), LIMITS).top_p == 0
    assert read(stop="a").stop == read(stop=["a"]).stop == ("a",)
    for wrong in (
        {"temperature": "0.5"},
        {"temperature": 2.1},
        {"temperature": True},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": "5"},
        {"seed": 2**63},
        {"top_p": -0.1},
        {"stream": "true"},
        {"stream": 1},
        {"stop": ["a"] * 5},
        {"stop": [""]},
        {"stop": ["a", 1]},
        {"stop": "x" * 65},
        {"stop": {}},
        {"user": 5},
        {"model": ["cmoe"]},
    ):
        (name,) = wrong
        message = said(**wrong)
        assert message.startswith(name)
        assert "should be" not in message, "pydantic's words"
    error = refused(json.dumps(ASKING).replace('"cmoe"', '"cmoe", "temperature": 1e999').encode())
    assert error.message.startswith("temperature is Infinity; 0 to 2")


# Mistakes


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (
            [{"type": "txt", "text": "a"}],
            '.0.type is "txt"; text or image_url; did you mean text?',
        ),
        (
            [{"type": "text", "text": "a"}, {"type": "img_url", "image_url": {"url": URL}}],
            '.1.type is "img_url"; text or image_url; did you mean image_url?',
        ),
        ([{"type": "input_audio", "input_audio": {}}], '.0.type is "input_audio"; text or image_'),
        ([{"text": "a"}], ".0.type is missing; text or image_url"),
        ([{"type": "text"}], ".0.text is missing"),
        ([{"type": "text", "text": 5}], ".0.text is a number; a string"),
        ([{"type": "text", "text": ["a"]}], ".0.text is a list; a string"),
        ([{"type": "image_url"}], ".0.image_url is missing"),
        ([{"type": "image_url", "image_url": {}}], ".0.image_url.url is missing"),
        ([{"type": "image_url", "image_url": URL}], '.0.image_url is a string; an object, {"url"'),
        ([{"type": "image_url", "image_url": {"url": 5}}], ".0.image_url.url is a number; a str"),
        (
            [{"type": "image_url", "image_url": {"url": URL, "detail": "hi"}}],
            '.0.image_url.detail is "hi"; auto, low or high; did you mean high?',
        ),
        (["a"], ".0 is a string; an object with type, text or image_url"),
        ([], " has 0 items; at least 1 item"),
        (5, " is a number; a string, or a list of parts"),
        ({"type": "text"}, " is an object; a string, or a list of parts"),
        (None, " is missing"),
        ("half a \ud800 pair", " holds half of a surrogate pair"),
    ],
)
def test_a_mistake_in_content_is_named_by_its_path(content: Any, cause: str) -> None:
    assert said([{"role": "user", "content": content}]).startswith(f"messages.0.content{cause}")


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ({"role": "user", "contents": "a"}, ": messages.0.contents; did you mean content?"),
        ({"role": "usr", "content": "a"}, 'messages.0.role is "usr"; system, developer, user or'),
        ({"role": "tool", "content": "a"}, 'messages.0.role is "tool"; system'),
        ({"content": "a"}, "messages.0.role is missing"),
        ({"role": "user", "content": "a", "name": 5}, "messages.0.name is a number; a string"),
        ({"role": "assistant", "content": "a", "refusal": "no"}, 'messages.0.refusal is "no"'),
        ({"role": "assistant", "tool_calls": [{}]}, "messages.0.tool_calls is [{}]; the model"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]},
            "Unrecognized request argument supplied: messages.0.content.0.cache_control",
        ),
        (
            {"role": "user", "content": [PICTURE | {"image_url": {"uri": URL}}]},
            "messages.0.content.0.image_url.uri; did you mean url?",
        ),
        ("hello", "messages.0 is a string; an object"),
    ],
)
def test_a_mistake_in_a_message_is_named_by_its_path(message: Any, cause: str) -> None:
    assert cause in said([message])


def test_an_unknown_field_is_told_the_nearest() -> None:
    assert said(temprature=1).endswith(": temprature; did you mean temperature?")
    assert said(maxtokens=1).endswith(": maxtokens; did you mean max_tokens?")
    assert said(colour="red").endswith(": colour")
    assert len(said(**{"x" * 10_000: 1})) < 300


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "the body isn't JSON"),
        (b"[1]", "the body is a list; an object"),
        (b"{", "the body isn't JSON: Expecting property name"),
        (b"\xff\xfe", "the body isn't JSON: 'utf-8' codec"),
        (b'{"model": "cmoe", "model": "cmoe"}', "'model' stands twice"),
        (b'{"model": "cmoe", "temperature": NaN}', "NaN is no number in JSON"),
        (b'{"model":' + b"[" * 100_000, "nested too deeply"),
        (b'{"model": "cmoe", "seed": ' + b"9" * 5000 + b"}", "the body isn't JSON"),
        (b"{}", "model is missing"),
        (b'{"model": null, "messages": []}', "messages has 0 items; at least 1 item"),
        (b'{"model": "a", "messages": [' + b"{}," * 9999 + b"{}]}", "10,000 items; at most 256"),
    ],
)
def test_a_body_that_is_none_is_refused(body: bytes, cause: str) -> None:
    assert cause in refused(body).message


def test_a_body_may_begin_with_its_byte_order_mark() -> None:
    assert ChatRequest.read(b"\xef\xbb\xbf" + json.dumps(ASKING).encode()) == read()
    assert read_located(json.dumps({"messages": ASKING["messages"]}).encode()) == read().messages


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.sampled_from([name for name, _ in NEUTRAL] + ["model", "messages"]), VALUES)
@settings(deadline=None)
def test_any_value_of_a_field_is_read_or_refused(name: str, value: Any) -> None:
    error = trial(**{name: value})
    assert error is None or (error.status, bool(error.message)) == (400, True)


@given(
    st.sampled_from(["role", "content", "name", "refusal", "tool_calls", "type", "text", "url"]),
    VALUES,
)
@settings(deadline=None)
def test_any_value_in_a_message_is_read_or_refused(name: str, value: Any) -> None:
    part: dict[str, Any] = {"type": "text", "text": "a"} | {name: value}
    shown = {"type": "image_url", "image_url": {"url": URL} | {name: value}}
    for message in (
        {"role": "assistant", "content": "a"} | {name: value},
        {"role": "user", "content": [part]},
        {"role": "user", "content": [shown]},
    ):
        error = trial(messages=[message])
        assert error is None or (error.status, bool(error.message)) == (400, True)


# What is answered can be asked again

FOUND = {"task": "VizWiz", "located": True, "unknown": False, "store_version": "2-abc"}
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


def spoken_back(text: str) -> list[Any]:
    """An answer as clients have it: an object, its values, without what is null, from chunks."""
    made = Completion("cmoe", "2-abc", FOUND)
    whole = ChatCompletion.model_validate(made.whole(text, "stop", 3, 2))
    message = whole.choices[0].message
    collected: dict[str, Any] = {}
    for event in (made.chunk(text, None, first=True), made.chunk("", "stop", first=False)):
        chunk = ChatCompletionChunk.model_validate_json(event.removeprefix("data: "))
        for key, value in chunk.choices[0].delta.model_dump(exclude_unset=True).items():
            collected[key] = collected.get(key, "") + value
    return [
        json.loads(message.model_dump_json()),
        message.model_dump(),
        message.model_dump(exclude_none=True),
        message.model_dump(exclude_unset=True),
        collected,
        # What other libraries add to it.
        message.model_dump() | {"reasoning_content": None, "annotations": [], "tool_calls": []},
        message.model_dump() | {"reasoning_content": "", "reasoning": None, "parsed": None},
    ]


@given(TEXTS)
@settings(deadline=None)
def test_an_answer_can_be_said_back(text: str) -> None:
    question, further = ASKING["messages"][0], {"role": "user", "content": "And then?"}
    for message in spoken_back(text):
        turns = talk(question, message, further).turns
        assert turns[1].role == "assistant"
        assert "".join(part or "" for part in turns[1].parts) == text


def test_an_assistant_may_have_said_nothing() -> None:
    question, further = ASKING["messages"][0], {"role": "user", "content": "And then?"}
    for nothing in ({}, {"content": None}, {"content": ""}):
        assert talk(question, {"role": "assistant"} | nothing, further).turns[1].parts == ("",)


def test_chunks_have_their_usage_where_it_was_asked_for() -> None:
    """Null in all but the last, as OpenAI documents `include_usage`; else the key isn't there."""
    for counted in (True, False):
        made = Completion("cmoe", "2-abc", FOUND, counted=counted)
        for event in (made.chunk("a", None, first=True), made.chunk("", "stop", first=False)):
            chunk = json.loads(event.removeprefix("data: "))
            assert chunk.get("usage", "absent") == (None if counted else "absent")
        assert json.loads(made.spent(3, 2).removeprefix("data: "))["usage"]["total_tokens"] == 5
    assert read(stream=True, stream_options={"include_usage": True}).usage
    with pytest.raises(RequestError, match="stream_options need stream"):
        read(stream_options={"include_usage": True})


# Conversations


def test_a_picture_keeps_its_turn_and_its_place() -> None:
    first = {"role": "user", "content": "One?"}
    yes = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
    asked = {"type": "text", "text": "And this?"}
    for content, parts in (
        ([PICTURE, asked], (None, "And this?")),
        ([asked, PICTURE], ("And this?", None)),
        ([asked, PICTURE, asked], ("And this?", None, "And this?")),
        ([asked, asked, PICTURE], ("And this?\nAnd this?", None)),
    ):
        made = talk({"role": "developer", "content": [asked]}, first, yes,
                    {"role": "user", "content": content, "name": "me"})  # fmt: skip
        assert [turn.role for turn in made.turns] == ["system", "user", "assistant", "user"]
        assert made.turns[3].parts == parts
        assert made.image_urls == [URL]
    with pytest.raises(RequestError, match="the question is empty"):
        talk({"role": "user", "content": [PICTURE, {"type": "text", "text": " "}]})
