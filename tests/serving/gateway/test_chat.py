"""What clients write: what asks for nothing is taken, and a mistake is named by its path."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk, completion_create_params
from support.chat_bodies import ASKING, LIMITS, NO_MORE, URL, read, refused, said, talk, trial

from cmoe.serving.gateway.chat import UNSUPPORTED_FIELDS, ChatRequest, read_located
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.protocol import Usage
from cmoe.serving.gateway.sampling import warning
from cmoe.serving.messages import AnswerPart

# What asks for nothing

NEUTRAL = [
    ("stream", [None, False]),
    ("stream_options", [None, {}, {"include_usage": False}, {"include_usage": None}]),
    ("stream_options", [{"include_obfuscation": False}, {"include_obfuscation": None}]),
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
    ("metadata", [None, {}, {"run": "7"}]),
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
    # vLLM's.
    ("top_k", [None, -1, 0]),
    ("min_p", [None, 0, 0.0]),
    ("repetition_penalty", [None, 1, 1.0]),
    ("min_tokens", [None, 0]),
    ("stop_token_ids", [None, []]),
    ("skip_special_tokens", [None, True]),
    ("use_beam_search", [None, False]),
    ("best_of", [None, 1]),
    ("chat_template_kwargs", [None, {}]),
    ("add_generation_prompt", [None, True]),
]


@given(st.lists(st.sampled_from([(name, v) for name, values in NEUTRAL for v in values])))
@settings(deadline=None)
def test_neutral_values_ask_for_nothing(chosen: list[tuple[str, Any]]) -> None:
    """Any of them, together: the request is the same as without."""
    assert read(**dict(chosen)) == read()


@pytest.mark.parametrize(("name", "values"), NEUTRAL)
def test_each_neutral_value_asks_for_nothing(name: str, values: list[Any]) -> None:
    for value in values:
        assert read(**{name: value}) == read(), value


def test_tools_that_none_may_be_called_ask_for_nothing() -> None:
    assert read(tools=[{"type": "function"}], tool_choice="none") == read()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"top_k": 5}, "top_k"),
        ({"repetition_penalty": 1.1, "min_p": 0.1, "top_k": -1}, "min_p, repetition_penalty"),
        ({"ignore_eos": True, "stop_token_ids": [2], "bad_words": ["no"]},
         "ignore_eos, stop_token_ids, bad_words"),
    ],
)  # fmt: skip
def test_sampling_that_the_executor_lacks_is_named_in_a_header(
    values: dict[str, Any], named: str
) -> None:
    """RFC 7234, 5.5: a warn-code, an agent, a quoted text."""
    found = read(**values)
    assert replace(found, ignored=()) == read()
    assert warning(found.ignored) == {
        "Warning": f'299 - "ignored, as the executor has no such sampling: {named}"'
    }
    assert warning(read().ignored) == {}


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"top_k": "5"}, 'top_k is "5"; a whole number'),
        ({"min_p": 2}, "min_p is 2; 0 to 1"),
        ({"bad_words": [5]}, "bad_words.0 is a number; a string"),
        ({"ignore_eos": 1}, "ignore_eos is 1; true or false"),
    ],
)
def test_sampling_that_is_ignored_is_read(values: dict[str, Any], cause: str) -> None:
    assert said(**values).startswith(cause)


@given(st.integers(1, 10**9))
@settings(deadline=None)
def test_an_upper_bound_is_bounded(tokens: int) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        assert read(**{name: tokens}).sampling.max_tokens == min(tokens, LIMITS.answer_tokens)
    assert read().sampling.max_tokens == LIMITS.answer_default


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
        ("metadata", {"a": 5}, "metadata.a is a number; a string"),
        ("metadata", {str(i): "b" for i in range(17)}, "metadata has 17 keys; at most 16"),
        ("top_logprobs", 2, "top_logprobs is 2; chances of tokens aren't given"),
        ("response_format", {"type": "json_object"}, "an answer is plain text"),
        ("modalities", ["text", "audio"], "an answer is plain text"),
        ("prediction", {"type": "content", "content": "x" * 999}, "..."),
        ("service_tier", "flex", "service_tier is"),
        ("reasoning_effort", "high", "reasoning_effort is"),
        ("frequency_penalty", 0.5, "no token is penalised, so that 0 or null"),
        ("stream_options", {"include_obfuscation": 1}, "stream_options.include_obfuscation is 1"),
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
    assert read(temperature=1).sampling.temperature == 1.0
    assert read(max_tokens=5.0).sampling.max_tokens == 5
    assert read(max_tokens=3, max_completion_tokens=4).sampling.max_tokens == 4
    assert read(top_p=0).sampling.top_p == 0
    assert read(stop="a").sampling.stop == read(stop=["a"]).sampling.stop == ("a",)
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
    marked = b"\xef\xbb\xbf" + json.dumps(ASKING).encode()
    assert ChatRequest.read(marked, LIMITS, NO_MORE) == read()
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

USED = Usage(3, 2)
FOUND = {"task": "VizWiz", "located": True, "unknown": False, "store_version": "2-abc"}
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


def events(written: str) -> list[Any]:
    """The data of a stream's events, without its mark of the end."""
    *data, last = written.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(each.removeprefix("data: ")) for each in data]


def spoken_back(text: str) -> list[Any]:
    """An answer as clients have it: an object, its values, without what is null, from chunks."""
    made = read().answer("2-abc", FOUND)
    whole = ChatCompletion.model_validate(made.whole([AnswerPart(text, 2, finish="stop")], USED))
    message = whole.choices[0].message
    collected: dict[str, Any] = {}
    written = made.add(AnswerPart(text, 2)) + made.add(AnswerPart("", 2, finish="stop"))
    for event in events(written + made.end(USED)):
        chunk = ChatCompletionChunk.model_validate(event)
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


def test_chunks_have_their_usage_where_it_was_asked_for() -> None:
    """Null in all but the last, as OpenAI documents `include_usage`; else the key isn't there."""
    for options in ({"include_usage": True}, {}):
        made = read(stream=True, stream_options=options).answer("2-abc", FOUND)
        parts = AnswerPart("a"), AnswerPart("b"), AnswerPart(finish="stop")
        *chunks, last = events("".join(map(made.add, parts)) + made.end(USED))
        if options:
            assert last["usage"]["total_tokens"] == 5
        else:
            chunks.append(last)
        expected = None if options else "absent"
        assert [chunk.get("usage", "absent") for chunk in chunks] == [expected] * 3
    assert read(stream=True, stream_options={"include_usage": True}).usage
    with pytest.raises(RequestError, match="stream_options need stream"):
        read(stream_options={"include_usage": True})
