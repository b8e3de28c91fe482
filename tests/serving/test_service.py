"""The service on a real Ray Serve: OpenAI's own client, growth, bad requests."""

from __future__ import annotations

import json
import os
import random
import socket
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from support.bad_requests import BAD_BODIES, BAD_REQUESTS, LIMITS, fuzzed
from support.jobs import until
from support.mini_store import collator
from support.paths import CONFIGS
from support.service_client import (
    KEY,
    TOKENS,
    ServiceClient,
    answer_alone,
    answer_to,
    ask,
    asking,
    conversation,
)

from cmoe.data.samples import Task
from cmoe.mini.tasks import LETTER, PHRASE
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE
from cmoe.serving.launch import ServiceError, read_service, serving
from cmoe.serving.load import request_of
from cmoe.store.log import Store
from cmoe.store.model import load_model

pytestmark = pytest.mark.ray  # which the service runs on

ASKING = [{"role": "user", "content": "Which of them?"}]
FUZZ = int(os.environ.get("CMOE_FUZZ", "500"))


# OpenAI's client


def test_models_are_the_locating_one_and_each_task(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["cmoe", "cmoe:ScienceQA", "cmoe:VizWiz"]
    assert client.models.retrieve("cmoe:VizWiz").owned_by == "cmoe"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("cmoe:Grounding")


def test_answers_and_tasks_are_those_of_the_model(
    client: openai.OpenAI, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    for task in tasks[:2]:
        for sample in task.test[:3]:
            for named in (None, task.name):
                name = "cmoe" if named is None else f"cmoe:{named}"
                found = ask(client, sample, name)
                text, by = answer_alone(answering, sample, named)
                assert (found.choices[0].message.content, found.cmoe["task"]) == (text, by)
                assert found.cmoe["located"] == (named is None)
                assert found.model == name
                prompt = collator().prompts([sample])["input_ids"].shape[1]
                assert found.usage.prompt_tokens == prompt
                assert 1 <= found.usage.completion_tokens <= TOKENS
                assert found.cmoe["store_version"].startswith("2-")
                assert found.system_fingerprint == found.cmoe["store_version"]


def test_a_stream_says_what_the_whole_says(
    client: openai.OpenAI, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    sample = tasks[1].test[0]
    chunks: list[Any] = list(
        client.chat.completions.create(
            model="cmoe",
            messages=asking(sample),
            max_completion_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer_alone(answering, sample)[0]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].usage.total_tokens > chunks[-1].usage.prompt_tokens
    assert [c.model_dump(exclude_unset=True).get("usage", "absent") for c in chunks[:-1]] == [
        None
    ] * (len(chunks) - 1)
    assert {c.id for c in chunks} == {chunks[0].id}
    assert all(c.cmoe["task"] == chunks[0].cmoe["task"] for c in chunks)


def test_settings_are_kept(client: openai.OpenAI, tasks: tuple[Task, ...]) -> None:
    """A seed draws the same again, a stop text ends before it, a limit cuts."""

    def said(**more: Any) -> Any:
        made = {"max_tokens": 30, "temperature": 2.0} | more
        return ask(client, tasks[0].test[0], **made).choices[0]

    drawn = [said(seed=seed).message.content for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    longest = max(range(1, 4), key=lambda n: len(drawn[n]))
    middle = drawn[longest][len(drawn[longest]) // 2 :][:2]
    cut = said(seed=longest, stop=[middle])
    assert cut.message.content == drawn[longest].split(middle)[0].rstrip()
    assert cut.finish_reason == "stop"
    assert said(seed=1, max_tokens=1).finish_reason == "length"
    assert said(temperature=2.0, top_p=1e-6).message.content == said(temperature=0).message.content


def test_a_conversation_goes_on(
    client: openai.OpenAI, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    sample = tasks[1].test[0]
    turns = [
        ("system", "Answer."),
        ("user", sample.text),
        ("assistant", "yes"),
        ("user", f"And the other?\n{PHRASE}"),
    ]
    for shown in (1, 3):  # the turn with the picture
        inputs, messages = conversation(sample, turns, shown)
        text, _ = answer_to(answering, inputs, "VizWiz")
        answer = client.chat.completions.create(
            model="cmoe:VizWiz", messages=messages, max_tokens=TOKENS
        )
        assert answer.choices[0].message.content == text


def test_a_question_gets_the_instruction_of_the_task_that_answers(
    client: openai.OpenAI, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    """People leave it out, and the experts were taught with it. One that is there stays."""
    for task, own in zip(tasks[:2], (LETTER, PHRASE), strict=True):
        sample = next(s for s in task.test if s.text.endswith(f"\n{own}"))
        bare = replace(sample, text=sample.text.removesuffix(f"\n{own}"))
        for model in ("cmoe", f"cmoe:{task.name}"):
            found = ask(client, bare, model)
            named = found.cmoe["task"]
            whole = replace(
                sample, text=f"{bare.text}\n{LETTER if named == 'ScienceQA' else PHRASE}"
            )
            text, _ = answer_alone(answering, whole, named)
            assert (found.choices[0].message.content, found.cmoe["instructed"]) == (text, True)
            assert found.usage.prompt_tokens == collator().prompts([whole])["input_ids"].shape[1]
        other = replace(sample, text=f"{bare.text}\n{PHRASE if own == LETTER else LETTER}")
        found = ask(client, other, f"cmoe:{task.name}")
        text, _ = answer_alone(answering, other, task.name)
        assert (found.choices[0].message.content, found.cmoe["instructed"]) == (text, False)


def test_it_is_told_whose_experts_work_on_a_question(
    service: ServiceClient, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    messages = asking(tasks[1].test[0])
    body = json.dumps({"model": "cmoe:VizWiz", "messages": messages}).encode()
    status, found, _ = service.post("/v1/experts", body)
    shares = answering.whose_experts(collator().prompts([tasks[1].test[0]]), "VizWiz").tolist()
    assert (status, found["task"]) == (200, "VizWiz")
    assert [row["task"] for row in found["tasks"]] == ["ScienceQA", "VizWiz"]
    assert [row["share"] for row in found["tasks"]] == pytest.approx(shares, abs=1e-4)
    assert min(shares) > 0
    for model, told in (("cmoe", "model is cmoe; a task's"), ("cmoe:Grunding", "does not exist")):
        refused = json.dumps({"model": model, "messages": messages}).encode()
        status, found, _ = service.post("/v1/experts", refused)
        assert (status in (400, 404), told in found["error"]["message"]) == (True, True), found


def test_an_answer_is_said_back_and_models_are_asked_again(
    client: openai.OpenAI, tasks: tuple[Task, ...]
) -> None:
    """By OpenAI's own client, in every form that it gives an answer and a model in."""
    first: Any = {"messages": asking(tasks[0].test[0]), "max_tokens": TOKENS, "tools": []}
    nothing: Any = {"stream": None, "logit_bias": None, "store": False, "metadata": None}
    nothing |= {"tool_choice": "none", "service_tier": "auto"}
    for entry in client.models.list():
        message = client.chat.completions.create(model=entry.id, **first, **nothing)
        said = message.choices[0].message
        with client.chat.completions.stream(model=entry.id, **first) as stream:
            streamed = stream.until_done().current_completion_snapshot.choices[0].message
        further = {"role": "user", "content": "And then?"}
        answers = set()
        for back in (said, said.model_dump(), said.model_dump(exclude_none=True), streamed,
                     streamed.model_dump()):  # fmt: skip
            messages: Any = [*first["messages"], back, further]
            again = client.chat.completions.create(model=entry.id, messages=messages, max_tokens=3)
            answers.add(again.choices[0].message.content)
        assert len(answers) == 1


def test_locating_compares_the_tasks(
    service: ServiceClient, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    for task in tasks[:2]:
        body = json.dumps({"messages": asking(task.test[1])}).encode()
        status, found, _ = service.post("/v1/locate", body)
        location = answering.locate(collator().prompts([task.test[1]]))
        assert status == 200
        assert found["task"] == found["nearest"] == answering.tasks[int(location.tasks[0])]
        assert [row["task"] for row in found["tasks"]] == list(answering.tasks)
        scores = [row["score"] for row in found["tasks"]]
        assert scores == pytest.approx(location.scores[0].tolist(), abs=1e-3)
        shares = [row["share"] for row in found["tasks"]]
        assert sum(shares) == pytest.approx(1)
        assert max(range(2), key=shares.__getitem__) == min(range(2), key=scores.__getitem__)


def test_a_task_is_found_by_the_last_question_and_the_picture(
    service: ServiceClient, client: openai.OpenAI, tasks: tuple[Task, ...]
) -> None:
    """Whatever a system message says, or was said before."""
    asked, other = tasks[1].test[1], tasks[0].test[0]
    (alone,) = asking(asked)
    picture = next(part for part in alone["content"] if part["type"] == "image_url")
    before: Any = [{"role": "user", "content": other.text}, {"role": "assistant", "content": "A"}]
    rules: Any = [{"role": "system", "content": "You are a helpful assistant. Be brief."}]
    shown: Any = [
        {"role": "user", "content": [picture, {"type": "text", "text": other.text}]},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": asked.text},
    ]
    body = json.dumps({"messages": [alone]}).encode()
    _, expected, _ = service.post("/v1/locate", body)
    for messages in ([*rules, alone], [*before, alone], [*rules, *before, alone], shown):
        _, found, _ = service.post("/v1/locate", json.dumps({"messages": messages}).encode())
        assert found == expected
        said: Any = client.chat.completions.create(model="cmoe", messages=messages, max_tokens=1)
        assert said.cmoe["score"] == pytest.approx(min(t["score"] for t in expected["tasks"]))
        assert said.cmoe["task"] == expected["task"]


def test_errors_are_openais(
    service: ServiceClient, client: openai.OpenAI, tasks: tuple[Task, ...]
) -> None:
    messages = asking(tasks[0].test[0])
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=messages)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="cmoe:Nothing"):
        client.chat.completions.create(model="cmoe:Nothing", messages=messages)
    with pytest.raises(openai.NotFoundError, match=r"did you mean cmoe:VizWiz\?"):
        client.chat.completions.create(model="cmoe:vizwis", messages=messages)
    with pytest.raises(openai.BadRequestError, match=r"Unrecognized request argument.*: colour"):
        ask(client, tasks[0].test[0], extra_body={"colour": "red"})
    with pytest.raises(openai.BadRequestError, match="n is 3; a request has one answer"):
        client.chat.completions.create(model="cmoe", messages=messages, n=3)
    with pytest.raises(openai.BadRequestError) as under:
        client.chat.completions.create(model="cmoe", messages=messages, max_tokens=0)
    assert under.value.param == "max_tokens"
    for key in ("wrong", KEY + "x"):
        with pytest.raises(openai.AuthenticationError):
            service.openai_client(key).models.list()
    assert len(list(service.openai_client("another").models.list())) == 3


def test_a_client_that_gives_up_frees_its_place(
    service: ServiceClient, client: openai.OpenAI, long: dict[str, Any]
) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).chat.completions.create(**long)
    stream = client.chat.completions.create(stream=True, **long)
    next(iter(stream))
    stream.close()
    until(lambda: service.state().get("running") == 0, minutes=0.25)


def test_what_is_there_is_shown(service: ServiceClient) -> None:
    status, health = service.get("/healthz")
    assert (status, health["status"]) == (200, "ok")
    assert health["executor"]["tasks"] == ["ScienceQA", "VizWiz"]
    assert health["locator"]["version"] == health["executor"]["version"]
    assert health["executor"]["replicas"] == 1
    assert "instructions" not in health["executor"]
    status, ready = service.get("/readyz")
    assert (status, ready["ready"]) == (200, True)
    for path in ("/", "/healthz", "/readyz", "/v1/models"):  # as monitors of a service look at it
        asked = urllib.request.Request(f"{service.url}{path}", method="HEAD")
        asked.add_header("Authorization", f"Bearer {KEY}")
        with urllib.request.urlopen(asked) as response:
            assert (response.status, response.read()) == (200, b"")
    assert 0 <= ready["looked_s_ago"] < 60
    assert service.get("/nowhere")[0] == 404
    with urllib.request.urlopen(f"{service.url}/healthz") as response:
        assert json.load(response) == {"status": "ok"}, "no more for one without a key"
    _, examples = service.get("/examples")
    assert len(examples) == 8


def test_figures_for_prometheus_are_by_task(service: ServiceClient) -> None:
    wanted = {f"ray_cmoe_{n}_seconds_count/VizWiz" for n in ("queue", "first_token", "token")}
    wanted |= {f"ray_cmoe_{n}_total/VizWiz" for n in ("requests", "located", "answer_tokens")}
    wanted |= {"ray_cmoe_locate_seconds_count/", "ray_cmoe_request_seconds_count/"}
    wanted |= {"ray_cmoe_locate_batch_prompts_count/", "ray_cmoe_prompt_tokens_total/VizWiz"}
    until(lambda: wanted <= service.metrics().keys())
    assert all(service.metrics()[name] >= 1 for name in wanted)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{service.url}/metrics")


# Defences


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_a_bad_request_is_refused_with_its_reason(service: ServiceClient, what: str) -> None:
    messages, status, cause = BAD_REQUESTS[what]
    before = {name: p.memory_info().rss for name, p in service.replicas().items()}
    found, body, _ = service.chat(messages)
    assert (found, cause in body["error"]["message"]) == (status, True), body
    assert body["error"]["type"] == "invalid_request_error"
    after = {name: p.memory_info().rss for name, p in service.replicas().items()}
    assert all(after[name] - before[name] < 30 * 2**20 for name in before), "memory rose"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_before_it_is_read(service: ServiceClient, chunked: bool) -> None:
    gateway = service.replicas()["gateway"]
    before = gateway.memory_info().rss
    sent = (b"x" * 2**20 for _ in range(200)) if chunked else b"x" * (64 * 2**20)
    try:
        status, body, _ = service.post("/v1/chat/completions", sent)
        assert (status, body["error"]["code"]) == (413, "body_too_large")
    except (BrokenPipeError, ConnectionResetError):
        pass  # hung up on while it was still sending: as good
    # Ray's proxy reads ahead of the gateway until it is told to stop.
    assert gateway.memory_info().rss - before < 128 * 2**20
    assert service.get("/readyz")[0] == 200


def test_other_bodies_and_methods_are_refused(service: ServiceClient) -> None:
    path = "/v1/chat/completions"
    for body, headers, status in BAD_BODIES:
        begun = time.monotonic()
        found, said, _ = service.post(path, body, **headers)
        assert found == status, said
        assert time.monotonic() - begun < 5
        assert said["error"]["message"]
    assert service.get(path)[0] == 405


def test_a_body_is_taken_however_its_kind_is_spelled(service: ServiceClient) -> None:
    body = json.dumps({"model": "cmoe", "messages": ASKING, "max_tokens": 1}).encode()
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/json;"):
        for start in (b"", b"\xef\xbb\xbf"):
            status, said, _ = service.post("/v1/chat/completions", start + body, Content_Type=kind)
            assert status == 200, said


def test_a_full_service_says_so_at_once(
    service: ServiceClient, long: dict[str, Any], tasks: tuple[Task, ...]
) -> None:
    """More than may be in flight: the rest gets 429 and when to come back; nobody else suffers."""
    body = json.dumps(long | {"max_tokens": 80}).encode()
    replies = service.drive([body] * 60, clients=60)
    assert {r.status for r in replies} == {200, 429}
    assert sum(r.status == 200 for r in replies) >= LIMITS["in_flight"]  # type: ignore[operator]
    assert max(r.seconds for r in replies if r.status == 429) < 5
    # As many as have room: whoever is answered asks again, so that it stays full for a while.
    busy, _ = service.load([body] * 120, clients=LIMITS["in_flight"])  # type: ignore[arg-type]
    refused: list[Any] = []

    def full() -> bool:
        found = service.chat(asking(tasks[0].test[0]), max_tokens=1)
        refused.append(found)
        return found[0] == 429

    until(full, minutes=0.5)
    busy.join()
    _, said, headers = refused[-1]
    assert said["error"]["type"] == "rate_limit_error"
    assert int(headers["retry-after"]) >= 1


def test_after_many_bad_requests_it_still_answers(
    service: ServiceClient, client: openai.OpenAI, tasks: tuple[Task, ...]
) -> None:
    """Good requests with bytes changed, cut, doubled, and fields of every kind."""
    rng, good = random.Random(7), request_of(tasks[0].test[0], tokens=2)
    bodies = [fuzzed(good, rng) for _ in range(FUZZ)]
    replies = service.drive(bodies, clients=8)
    statuses = {r.status for r in replies}
    assert statuses <= {200, 400, 404}, [r for r in replies if r.status not in (200, 400, 404)][:3]
    assert 400 in statuses
    assert ask(client, tasks[0].test[0], max_tokens=2).choices[0].finish_reason


# Growth, under load


def test_a_primitive_is_taken_without_a_restart(
    service: ServiceClient,
    client: openai.OpenAI,
    growing_store: Store,
    stores: dict[str, Store],
    answering: GrowingVLM,
    tasks: tuple[Task, ...],
) -> None:
    """Under load, without one failure; a broken one is refused before, and the old goes on."""
    samples = [*tasks[0].test[:10], *tasks[1].test[:10]]
    bodies = [request_of(sample, tokens=TOKENS) for sample in samples]
    thread, replies = service.load(bodies * 6)
    broken = Path(growing_store.url) / "002.json"
    broken.write_text('{"index": 2, "task": "Broken"}')
    until(lambda: "002.json" in (service.state().get("refused") or ""))
    assert service.state()["version"]["tasks"] == 2
    assert service.get("/healthz")[1]["status"] == "degraded"
    broken.unlink()
    record = growing_store.append(stores["front"].read(2))
    for part in ("executor", "locator"):
        until(
            lambda part=part: service.state(part).get("version", {}).get("digest") == record.digest
        )
    thread.join()
    assert {r.status for r in replies} == {200}, [r for r in replies if r.status != 200][:3]
    until(lambda: service.get("/healthz")[1]["status"] == "ok")
    answers = {s.id: answer_alone(answering, s) for s in samples}
    for reply in replies:  # a sample of two tasks may be located anew once there is a third
        text, task = answers[samples[reply.number % len(samples)].id]
        assert reply.task != task or reply.text == text
    names = [m.id for m in client.models.list()]
    assert names[-1] == "cmoe:Grounding"
    sample, whole = tasks[2].test[0], load_model(stores["front"], load_base(MINI_BASE)[0])
    found = ask(client, sample)
    assert (found.choices[0].message.content, found.cmoe["task"]) == answer_alone(whole, sample)
    assert found.cmoe["store_version"] == f"3-{record.digest[:12]}"


def test_a_taken_port_is_refused(service: ServiceClient, growing_store: Store) -> None:
    """Two services would share it, and each would get some of the requests."""
    port = urlsplit(service.url).port
    other = read_service(
        CONFIGS / "serve_mini.yaml", store=growing_store.url, port=port, auth=False
    )
    with pytest.raises(ServiceError, match=f"port {port} is taken"), serving(other):
        pass
    with socket.create_connection(("127.0.0.1", port or 0)):
        pass
