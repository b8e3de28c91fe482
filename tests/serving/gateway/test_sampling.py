"""Fields that an executor may honour: passed on where it does, and as without it elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib._parsing import type_to_response_format_param
from pydantic import BaseModel
from support.chat_bodies import ASKING, LIMITS, NO_MORE, read, trial
from support.echoing import ALL

from cmoe.serving.gateway.chat import ChatRequest
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.limits import MAX_DEPTH
from cmoe.serving.gateway.responses import ResponseRequest
from cmoe.serving.messages import Sampling

LOGPROBS = "message.output_text.logprobs"
OBJECT = {"type": "object"}


def respond(samples: frozenset[str] = NO_MORE, /, **changes: Any) -> ResponseRequest:
    body = {"model": "cmoe", "input": "Which?"} | changes
    return ResponseRequest.read(json.dumps(body).encode(), LIMITS, samples)


def described(schema: Any = OBJECT, name: Any = "a", **more: Any) -> dict[str, Any]:
    return {"name": name, "schema": schema, **more}


def chat_format(**changes: Any) -> Any:
    return {"type": "json_schema", "json_schema": described(**changes)}


def nested(depth: int) -> Any:
    """So many objects in each other."""
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        ({"top_k": 1}, {"top_k": 1}),
        ({"top_k": 2**31 - 1}, {"top_k": 2**31 - 1}),
        ({"min_p": 1}, {"min_p": 1.0}),
        ({"repetition_penalty": 0.001}, {"repetition_penalty": 0.001}),
        ({"repetition_penalty": 2}, {"repetition_penalty": 2.0}),
        ({"frequency_penalty": -2}, {"frequency_penalty": -2.0}),
        ({"presence_penalty": 2}, {"presence_penalty": 2.0}),
        ({"n": 8}, {"n": 8}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": '{"type":"object"}'}),
        ({"response_format": chat_format(strict=False)}, {"json_schema": '{"type":"object"}'}),
        (
            {"response_format": chat_format(schema={"enum": ["é", None]}, description="So.")},
            {"json_schema": '{"enum":["é",null]}'},
        ),
    ],
)
def test_what_the_executor_honours_is_passed_on(
    given: dict[str, Any], sampled: dict[str, Any]
) -> None:
    """And by that alone: the same without the others, and refused or ignored without it."""
    expected = replace(read(), sampling=replace(read().sampling, **sampled))
    assert read(ALL, **given) == expected
    assert read(frozenset(sampled), **given) == expected
    lacking = ALL - {*sampled}
    if (error := trial(lacking, **given)) is None:
        found = read(lacking, **given)
        assert (found.sampling, found.ignored) == (read().sampling, tuple(given))
        assert {*given} < {"top_k", "min_p", "repetition_penalty"}
    else:
        assert error.param in given
        assert "null is taken" in error.message


@pytest.mark.parametrize(
    ("field", "values", "cause"),
    [
        ("top_k", [-2, 2**31, 1.5, True, "5"], ""),
        ("min_p", [-0.1, 1.1, "0"], ""),
        ("repetition_penalty", [0, -1, 2.1, True], ""),
        ("frequency_penalty", [-2.1, 2.1, False], "-2 to 2"),
        ("presence_penalty", [-2.1, 2.1, []], "-2 to 2"),
        ("n", [0, 9, 1.5, True, "2"], ""),
        ("logprobs", [0, 1, 5, "true"], "true or false"),
        ("top_logprobs", [-1, 21, 2.5], ""),
        ("top_logprobs", [1], "only where log probabilities are asked for"),
        ("response_format", ["json_object", []], "an object"),
        ("response_format", [{"type": "xml"}, {"type": ["text"]}], "json_object or json_schema"),
        ("response_format", [{}, {"type": None}], "type is missing"),
        ("response_format", [{"type": "json_schema"}], "json_schema is missing"),
        ("response_format", [{"type": "text", "json_schema": {}}], "Unrecognized"),
        ("response_format", [{"type": "json_schema", "json_schema": {"name": "a"}}], "is missing"),
        ("response_format", [chat_format(name=n) for n in ("", "a b", "é", "a" * 65)], "letters"),
        ("response_format", [chat_format(schema=s) for s in ("{}", True, [])], "a JSON schema"),
        ("response_format", [chat_format(schema={"a": "x" * 20_000})], "20,008 bytes; at most"),
        ("response_format", [chat_format(description="x" * 20_000)], "20,000 bytes; at most"),
        ("response_format", [chat_format(schema={"a": "\ud800"})], "surrogate"),
        ("response_format", [chat_format(schema=nested(MAX_DEPTH + 1))], "deeper than 100"),
        ("response_format", [chat_format(colour="red")], "Unrecognized"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(field: str, values: list[Any], cause: str) -> None:
    for value in values:
        error = trial(ALL, **{field: value})
        assert error is not None, value
        assert error.status == 400
        assert (error.param or "").startswith(field)
        assert cause in error.message
        assert len(error.message) < 250


def test_a_number_that_json_cannot_write_is_refused() -> None:
    body = json.dumps(ASKING | {"response_format": chat_format(schema={"maximum": 5})})
    with pytest.raises(RequestError, match="a number that is too large"):
        ChatRequest.read(body.replace(": 5}", ": 1e999}").encode(), LIMITS, ALL)


def test_the_limits_are_settings() -> None:
    limits = replace(LIMITS, answers=2, schema_bytes=20)
    for good, bad in (
        ({"n": 2}, {"n": 3}),
        (
            {"response_format": chat_format(schema={"title": "x" * 8})},
            {"response_format": chat_format(schema={"title": "x" * 9})},
        ),
    ):
        ChatRequest.read(json.dumps(ASKING | good).encode(), limits, ALL)
        with pytest.raises(RequestError):
            ChatRequest.read(json.dumps(ASKING | bad).encode(), limits, ALL)


NEUTRAL = [
    ("top_k", [None, -1, 0]),
    ("min_p", [None, 0]),
    ("repetition_penalty", [None, 1]),
    ("frequency_penalty", [None, 0, -0.0]),
    ("presence_penalty", [None, 0]),
    ("n", [None, 1, 1.0]),
    ("logprobs", [None, False]),
    ("top_logprobs", [None, 0]),
    ("response_format", [None, {"type": "text"}]),
]
SOME: Any = st.sets(st.sampled_from(sorted(ALL))).map(frozenset)


@given(SOME, st.lists(st.sampled_from([(name, v) for name, values in NEUTRAL for v in values])))
@settings(deadline=None)
def test_neutral_values_ask_for_nothing_whatever_is_honoured(
    samples: frozenset[str], chosen: list[tuple[str, Any]]
) -> None:
    assert read(samples, **dict(chosen)) == read()


@pytest.mark.parametrize(("name", "values"), NEUTRAL)
def test_each_neutral_value_asks_for_nothing(name: str, values: list[Any]) -> None:
    for value in values:
        assert read(ALL, **{name: value}).sampling == Sampling(LIMITS.answer_default), value


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "json_schema", "schema", "name", "a"]), inner)
    ),
    max_leaves=6,
)


@given(SOME, st.sampled_from([name for name, _ in NEUTRAL]), VALUES)
@settings(deadline=None)
def test_any_value_is_refused_or_leaves_what_is_not_honoured_alone(
    samples: frozenset[str], name: str, value: Any
) -> None:
    error = trial(samples, **{name: value})
    if error is not None:
        assert (error.status, bool(error.message)) == (400, True)
        return
    found, without = read(samples, **{name: value}).sampling, read().sampling
    changed = {each for each in vars(found) if getattr(found, each) != getattr(without, each)}
    assert changed <= samples


class Colour(BaseModel):
    """What a client may want."""

    name: str
    parts: list[int]


def test_the_formats_that_openais_client_makes_are_read() -> None:
    made: Any = type_to_response_format_param(Colour)
    found = read(ALL, response_format=made).sampling.json_schema
    assert json.loads(found or "") == made["json_schema"]["schema"]


# Responses


def test_responses_take_what_their_protocol_has() -> None:
    form = {"type": "json_schema", **described(strict=True)}
    found = respond(
        ALL, top_k=3, min_p=0.5, include=[LOGPROBS], top_logprobs=4, text={"format": form}
    )
    expected = {"top_k": 3, "min_p": 0.5, "logprobs": 4, "json_schema": '{"type":"object"}'}
    assert found.sampling == replace(respond().sampling, **expected)
    assert found.ignored == ()
    assert found.said_back["text"]["format"] == form
    assert found.said_back["top_logprobs"] == 4
    loose = respond(ALL, include=[LOGPROBS], text={"format": {"type": "json_object"}})
    assert (loose.sampling.logprobs, loose.sampling.json_schema) == (0, '{"type":"object"}')
    plain = respond(ALL, text={"format": {"type": "text"}}, include=[], top_logprobs=0)
    assert plain == respond(ALL) == respond()


@pytest.mark.parametrize(
    ("samples", "changes", "param"),
    [
        (ALL, {"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        (ALL, {"text": {"format": chat_format()}}, "text.format.json_schema"),
        (ALL, {"text": {"format": {"type": "xml"}}}, "text.format.type"),
        (ALL, {"text": {"verbosity": "high"}}, "text.verbosity"),
        (ALL, {"top_logprobs": 2}, "top_logprobs"),
        (ALL, {"top_logprobs": 21, "include": [LOGPROBS]}, "top_logprobs"),
        (ALL, {"n": 2}, "n"),
        (ALL - {"json_schema"}, {"text": {"format": {"type": "json_object"}}}, "text.format"),
        (ALL - {"logprobs"}, {"include": [LOGPROBS]}, "include.0"),
        (ALL - {"logprobs"}, {"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_responses_refuse_by_name(
    samples: frozenset[str], changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as refused:
        respond(samples, **changes)
    assert (refused.value.status, refused.value.param) == (400, param)
