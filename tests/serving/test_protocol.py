"""The protocol over HTTP: other people's clients, each by a script of ordinary use, and what they
may send (`tests/clients` has the scripts).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from support.clients import SCRIPTS, TASK, require_answers
from support.mini_store import collator
from support.service_client import (
    ServiceClient,
    answer_alone,
    answer_to,
    ask,
    asking,
)

from cmoe.data.batches import ChatTurn
from cmoe.data.images import load_image
from cmoe.data.samples import Task
from cmoe.mini.tasks import PHRASE
from cmoe.modeling.growing import GrowingVLM

pytestmark = pytest.mark.ray  # which the service runs on

NAMED = f"cmoe:{TASK}"
CONTEXT = 512  # tokens of the mini base's
CHATS, RESPONSES = "/v1/chat/completions", "/v1/responses"
QUESTION = {"role": "user", "content": "Which of them?"}


# Clients


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_client_gets_the_answers_of_the_model(
    script: Path, service: ServiceClient, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    """To a text, a picture, a stream, and a further turn that repeats the answer before it."""
    require_answers(script, service, answering, tasks[1].test[0])


# What they may send


def test_responses_say_what_chats_say(
    client: openai.OpenAI, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    """And say by which task, as chats do; a limit that cuts an answer is told."""
    (parts,) = (message["content"] for message in asking(tasks[0].test[0]))
    picture = {"type": "input_image", "image_url": parts[0]["image_url"]["url"]}
    content = [picture, {"type": "input_text", "text": parts[1]["text"]}]
    found: Any = client.responses.create(
        model="cmoe", input=[{"role": "user", "content": content}], max_output_tokens=12
    )
    assert (found.output_text, found.cmoe["task"]) == answer_alone(answering, tasks[0].test[0])
    chat = ask(client, tasks[0].test[0], max_tokens=12)
    assert found.usage.input_tokens == chat.usage.prompt_tokens
    assert found.usage.output_tokens == chat.usage.completion_tokens
    assert found.usage.output_tokens > 1
    cut = client.responses.create(
        model="cmoe", input=[{"role": "user", "content": content}], max_output_tokens=1
    )
    assert cut.status == cut.output[0].status == "incomplete"
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_turns_as_clients_write_them_are_answered(
    client: openai.OpenAI, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    hello = {"role": "assistant", "content": "Hello."}
    rule = {"role": "system", "content": "Answer."}
    nothing = {"role": "assistant", "content": None}
    (shown,) = asking(tasks[0].test[0])
    alone = {"role": "user", "content": shown["content"][:1]}
    for turns, messages in (
        ([("user", "Which of them?\nWhich of them?")], [QUESTION, QUESTION]),
        ([("system", "Answer.\nAnswer."), ("user", "Which of them?")], [rule, QUESTION, rule]),
        (
            [("user", ""), ("assistant", "Hello."), ("user", "Which of them?")],
            [hello, nothing, QUESTION],
        ),
    ):
        *before, (role, text) = turns  # a question gets the instruction of the task
        spoken = [*before, (role, f"{text}\n{PHRASE}")]
        inputs = collator().conversation([ChatTurn(r, (t,)) for r, t in spoken], None)
        given: Any = {"model": NAMED, "messages": messages, "max_tokens": 12}
        answer = client.chat.completions.create(**given).choices[0].message.content
        assert answer == answer_to(answering, inputs, TASK)[0]
    for model in ("cmoe", NAMED):
        found = client.chat.completions.create(model=model, messages=[alone], max_tokens=12)
        assert found.choices[0].finish_reason


def test_images_are_seen_in_the_turns_that_show_them(
    client: openai.OpenAI, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    """Two in one turn, and one in a later one; what is asked last is about the last."""
    one, other = [sample for sample in tasks[1].test if sample.images][:2]
    (first,), (second,) = (asking(sample) for sample in (one, other))
    shown = [first["content"][0], second["content"][0]]
    text = {"type": "text", "text": one.text}
    images = [load_image(sample.images[0], collator().limits) for sample in (one, other)]
    spoken = {"role": "assistant", "content": "A ring."}
    for messages, turns in (
        ([{"role": "user", "content": [*shown, text]}], [("user", (None, None, one.text))]),
        (
            [first, spoken, {"role": "user", "content": [shown[1], text]}],
            [("user", (None, one.text)), ("assistant", ("A ring.",)), ("user", (None, one.text))],
        ),
    ):
        made: Any = {"model": NAMED, "messages": messages, "max_tokens": 12}
        found = client.chat.completions.create(**made).choices[0].message.content
        inputs = collator().conversation([ChatTurn(*turn) for turn in turns], images)
        assert found == answer_to(answering, inputs, TASK)[0]
        located = client.chat.completions.create(**{**made, "model": "cmoe"})
        last = images if len(turns) == 1 else images[1:]
        asked = collator().conversation([ChatTurn(*turns[-1])], last)
        assert located.cmoe["task"] == answering.tasks[answering.locate(asked).tasks[0]]


def test_an_upper_bound_is_bounded_by_what_the_context_has_room_for(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "#~ " * 167}]
    found: Any = client.chat.completions.create(model=NAMED, messages=messages, max_tokens=10**9)
    prompt, answer = found.usage.prompt_tokens, found.usage.completion_tokens
    assert CONTEXT - 10 < prompt < CONTEXT
    assert not found.cmoe["instructed"], "there is no room for it"
    assert 1 <= answer <= CONTEXT - prompt
    assert (found.choices[0].finish_reason == "length") == (prompt + answer == CONTEXT)


def test_a_stop_text_is_found_in_what_the_client_gets(
    client: openai.OpenAI, tasks: tuple[Task, ...]
) -> None:
    """White space in front of an answer isn't there for a client, and so it ends nothing."""
    whole = ask(client, tasks[0].test[0]).choices[0].message.content
    for stop in (" ", "\n", whole[:2], whole[2:5]):
        cut = ask(client, tasks[0].test[0], stop=stop).choices[0].message.content
        assert cut == whole.split(stop)[0].rstrip()


def test_sampling_that_is_ignored_is_told(client: openai.OpenAI) -> None:
    given: Any = {"model": "cmoe", "messages": [QUESTION], "max_tokens": 1}
    asking_raw = client.chat.completions.with_raw_response
    for stream in (False, True):
        more: Any = {"extra_body": {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1}}
        headers = asking_raw.create(stream=stream, **more, **given).headers
        assert headers["warning"].startswith('299 - "')
        assert headers["warning"].endswith(': top_k, min_p"')
        assert "warning" not in asking_raw.create(stream=stream, **given).headers


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("POST", "/v1/embeddings", 404, "This service has POST /v1/chat/completions"),
        ("POST", "/v1/chat/completion", 404, "did you mean /v1/chat/completions?"),
        ("GET", "/v1/responses/resp_1", 404, "POST /v1/responses"),
        ("POST", "/chat/completions", 404, "did you mean /v1/chat/completions?"),
        ("GET", CHATS, 405, "it takes POST"),
        ("DELETE", RESPONSES, 405, "it takes POST"),
        ("POST", "/v1/models", 405, "it takes GET, HEAD"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    service: ServiceClient, method: str, path: str, status: int, told: str
) -> None:
    found, body, headers = service.request(method, path)
    assert found == status
    assert body["error"]["type"] == "invalid_request_error"
    assert f"{method} " in body["error"]["message"]
    assert told in body["error"]["message"]
    assert ("allow" in headers) == (status == 405)
