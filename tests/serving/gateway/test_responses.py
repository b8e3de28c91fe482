"""OpenAI's responses: what clients write is read, and what is written their own types read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent, response_create_params
from pydantic import TypeAdapter
from support.chat_bodies import LIMITS, NO_MORE, URL

from cmoe.serving.gateway.conversation import ImageUrl, conversation
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.protocol import Usage
from cmoe.serving.gateway.responses import ResponseRequest
from cmoe.serving.messages import AnswerPart

ASKING = {"model": "cmoe", "input": "Which?"}
FOUND = {"task": "VizWiz", "located": True, "unknown": False, "store_version": "2-abc"}
USED = Usage(3, 2)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def read(samples: frozenset[str] = NO_MORE, /, **changes: Any) -> ResponseRequest:
    """A request, where the executor honours `samples`."""
    return ResponseRequest.read(json.dumps(ASKING | changes).encode(), LIMITS, samples)


def refused(**changes: Any) -> RequestError:
    with pytest.raises(RequestError) as error:
        conversation(read(**changes).messages, LIMITS, "input")
    assert error.value.status == 400
    assert error.value.param
    return error.value


def turns(value: Any, **more: Any) -> list[tuple[str, tuple[str | None, ...]]]:
    made = conversation(read(input=value, **more).messages, LIMITS, "input")
    return [(turn.role, turn.parts) for turn in made.turns]


def events(written: str) -> list[Any]:
    """A stream's events, each with the name that its data has as their type."""
    found = []
    for each in written.removesuffix("\n\n").split("\n\n"):
        name, data = each.split("\n")
        values = json.loads(data.removeprefix("data: "))
        assert name == f"event: {values['type']}"
        found.append(values)
    return found


# Requests

NEUTRAL = [
    ("stream", [None, False]),
    ("stream_options", [None, {}, {"include_obfuscation": False}]),
    ("store", [None, False]),
    ("previous_response_id", [None]),
    ("conversation", [None]),
    ("context_management", [None, []]),
    ("background", [None, False]),
    ("background_options", [None, {}]),
    ("prompt", [None]),
    ("tools", [None, []]),
    ("tool_choice", [None, "none", "auto"]),
    ("parallel_tool_calls", [None, True, False]),
    ("max_tool_calls", [None, 0, 5]),
    ("top_logprobs", [None, 0]),
    ("include", [None, [], ["reasoning.encrypted_content"]]),
    ("reasoning", [None, {}, {"effort": None, "summary": "auto"}, {"effort": "none"}]),
    ("text", [None, {}, {"format": {"type": "text"}, "verbosity": "medium"}]),
    ("truncation", [None, "disabled"]),
    ("service_tier", [None, "auto", "default"]),
    ("moderation", [None]),
    ("access_programs", [None, {}]),
    ("image", [None, {}]),
    ("prompt_cache_options", [None, {}]),
    ("prompt_cache_retention", [None, "in_memory"]),
    ("instructions", [None]),
    ("max_output_tokens", [None]),
    ("metadata", [None, {}]),
    ("temperature", [None, 0]),
    ("top_p", [None, 1]),
    ("prompt_cache_key", [None]),
    ("safety_identifier", [None]),
    ("user", [None]),
    ("top_k", [None, -1]),
]


@given(st.lists(st.sampled_from([(name, v) for name, values in NEUTRAL for v in values])))
@settings(deadline=None)
def test_neutral_values_ask_for_nothing(chosen: list[tuple[str, Any]]) -> None:
    assert read(**dict(chosen)) == read()


def test_every_field_of_the_client_is_known() -> None:
    known = {*response_create_params.ResponseCreateParamsBase.__annotations__}
    assert known - {"model", "input"} <= {name for name, _ in NEUTRAL}
    for name in known:
        assert "Unrecognized" not in refused(**{name: [5]}).message


@pytest.mark.parametrize(
    ("changes", "param", "cause"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "`input` has the whole conv"),
        ({"store": True}, "store", "no answer is kept, so that false or null is taken"),
        ({"background": True}, "background", "no answer is kept"),
        ({"truncation": "auto"}, "truncation", "nothing is left out of a conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools", "the model calls no tools"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "without reasoning first"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", "an answer is plain text"),
        ({"include": ["message.output_text.logprobs"]}, "include.0", "code_interpreter_call"),
        ({"messages": []}, "messages", "Unrecognized request argument supplied: messages"),
        ({"max_output_tokens": 0}, "max_output_tokens", "is 0; at least 1"),
        ({"input": 5}, "input", "is a number; a string, or a list of messages"),
        ({"input": []}, "input", "has 0 items"),
        ({"input": " "}, "input", "the question is empty"),
        ({"input": ["a"]}, "input.0", "is a string; an object, a message"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input.0.type", "no answer is kept"),
        ({"input": [{"type": "function_call_output"}]}, "input.0.type", "; message"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input.0.role", 'is "tool"'),
    ],
)
def test_what_cannot_be_given_is_refused(changes: dict[str, Any], param: str, cause: str) -> None:
    error = refused(**changes)
    assert error.param == param
    assert cause in error.message


@pytest.mark.parametrize(
    ("part", "param", "cause"),
    [
        ({"type": "text", "text": "a"}, "type", "; input_text, input_image or output_text"),
        ({"type": "input_text"}, "text", "is missing"),
        ({"type": "input_image"}, "image_url", "is missing"),
        ({"type": "input_image", "image_url": {"url": URL}}, "image_url", "an object; a string"),
        ({"type": "input_image", "file_id": "file_1"}, "file_id", "no file is kept"),
        ({"type": "input_file", "file_url": URL}, "type", '"input_file"; input_text, input_image'),
    ],
)
def test_a_mistake_in_a_part_is_named_by_its_path(part: Any, param: str, cause: str) -> None:
    first = {"type": "input_text", "text": "a"}
    error = refused(input=[{"role": "user", "content": [first, part]}])
    assert error.param == f"input.0.content.1.{param}"
    assert cause in error.message


def test_input_is_a_string_or_messages() -> None:
    shown = {"type": "input_image", "image_url": URL, "detail": "auto"}
    asked = {"type": "input_text", "text": "Which?"}
    user = {"role": "user", "content": [shown, asked]}
    assert turns("Which?") == [("user", ("Which?",))]
    assert turns([user, user | {"type": "message", "content": "So?"}]) == [
        ("user", (None, "Which?\nSo?"))
    ]
    told = ("system", ("Be brief.\nBe kind.",))
    rules = {"role": "developer", "content": "Be kind."}
    assert turns([rules, user], instructions="Be brief.") == [told, ("user", (None, "Which?"))]
    at = "input.0.content.0.image_url"
    assert conversation(read(input=[user]).messages, LIMITS).images == [ImageUrl(URL, at)]


@given(st.integers(1, 10**9))
@settings(deadline=None)
def test_an_upper_bound_is_bounded(tokens: int) -> None:
    found = read(max_output_tokens=tokens)
    assert found.sampling.max_tokens == min(tokens, LIMITS.answer_tokens)
    assert found.said_back["max_output_tokens"] == found.sampling.max_tokens


# Answers

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=4)


@given(TEXTS, st.sampled_from(["stop", "length"]), st.booleans())
@settings(deadline=None)
def test_events_say_what_the_whole_says(parts: list[str], finish: Any, obfuscated: bool) -> None:
    """In OpenAI's order, numbered, and each as their own types read it."""
    request = read(stream=True, stream_options={"include_obfuscation": obfuscated})
    made = request.answer("2-abc", FOUND)
    said = [*map(AnswerPart, parts), AnswerPart(finish=finish)]
    found = events("".join(map(made.add, said)) + made.end(USED))
    for values in found:
        assert EVENT.validate_python(values).type == values["type"]
    status = "completed" if finish == "stop" else "incomplete"
    assert [values["type"] for values in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * sum(map(bool, parts)),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{status}",
    ]
    assert [values["sequence_number"] for values in found] == [*range(len(found))]
    deltas = [values for values in found if "delta" in values]
    text = "".join(values["delta"] for values in deltas)
    last = found[-1]["response"]
    whole = Response.model_validate(made.whole([AnswerPart(text, 2, finish=finish)], USED))
    assert whole.output_text == text == "".join(parts)
    assert last["output"][0]["content"][0]["text"] == text
    assert (whole.status, last["status"]) == (status, status)
    assert last["usage"]["total_tokens"] == 5
    sizes = {len(json.dumps(values, ensure_ascii=False).encode()) % 64 for values in deltas}
    assert sizes <= {0} or not obfuscated


@given(st.text(st.characters(codec="utf-8"), max_size=8))
@settings(deadline=None)
def test_an_output_can_be_put_in_again(text: str) -> None:
    response = Response.model_validate(
        read().answer("2-abc", FOUND).whole([AnswerPart(text, 2, finish="stop")], USED)
    )
    (item,) = response.output
    for back in (item.model_dump(), item.model_dump(exclude_none=True), json.loads(item.to_json())):
        said = turns([{"role": "user", "content": "Which?"}, back, ASKING_AGAIN])
        assert said[1] == ("assistant", (text,))


ASKING_AGAIN = {"role": "user", "content": "And then?"}


def test_an_answer_that_breaks_off_is_told() -> None:
    made = read(stream=True).answer("2-abc", FOUND)
    begun = events(made.add(AnswerPart("a")))
    (failed,) = events(made.fail(RequestError(504, "the answer took too long")))
    event = EVENT.validate_python(failed)
    assert event.type == "response.failed"
    assert event.sequence_number == len(begun)
    assert (event.response.status, event.response.error.code) == ("failed", "server_error")
    assert event.response.error.message == "the answer took too long"


def test_a_response_repeats_what_was_asked() -> None:
    asked = {
        "instructions": "Be brief.",
        "metadata": {"run": "7"},
        "temperature": 0.5,
        "user": "me",
    }
    found = read(**asked).answer("2-abc", FOUND).whole([AnswerPart("a", 2)], USED)
    assert {name: found[name] for name in asked} == asked
    assert (found["store"], found["previous_response_id"]) == (False, None)
