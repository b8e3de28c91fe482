"""The service on a real Ray Serve: OpenAI's own client, growth, lost replicas, bad requests."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import psutil
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from support.jobs import until
from support.mini_store import collator, make_data, make_primitive, make_store
from support.paths import ROOT
from support.service import running_service

from cmoe.data.batches import ChatTurn
from cmoe.data.samples import Sample, Task
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE
from cmoe.serving.load import Reply, drive, request_of
from cmoe.store.log import Store
from cmoe.store.model import load_model

KEY = "a key for tests"
ASKING = [{"role": "user", "content": "Which of them?"}]
TOKENS = 12
FUZZ = int(os.environ.get("CMOE_FUZZ", "500"))
LIMITS = {
    "in_flight": 24,
    "answer_tokens": 400,
    "text_bytes": 1000,
    "picture_pixels": 250_000,
    "picture_bytes": 200_000,
    "body_bytes": 400_000,
    "hosts": ["localhost", "127.0.0.1"],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, ...]:
    return make_data(tmp_path_factory.mktemp("data") / "coin")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tasks: tuple[Task, ...]) -> Store:
    """Two of the three tasks; the third is committed while the service runs."""
    return make_store(tmp_path_factory.mktemp("stores") / "store", tasks[:2])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[str]:
    config = yaml.safe_load((ROOT / "configs" / "serve_mini.yaml").read_text())
    (application,) = config["applications"]
    application["args"] |= {"poll_s": 0.5, "reject_unknown": False}
    application["args"]["limits"] = LIMITS
    file = tmp_path_factory.mktemp("config") / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    environment = {"CMOE_API_KEYS": f"{KEY},another"}
    with running_service(
        Path(store.url), "--config", str(file), environment=environment
    ) as address:
        yield address.rstrip("/")


@pytest.fixture(scope="module")
def model(url: str, store: Store) -> GrowingVLM:
    """The same model in this process."""
    return load_model(Store.open(store.url), load_base(MINI_BASE)[0])


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def picture_url(sample: Sample) -> str:
    assert sample.image is not None
    with sample.image.open("rb") as file:
        return "data:image/png;base64," + base64.b64encode(file.read()).decode()


def asking(sample: Sample) -> list[Any]:
    content: list[Any] = [{"type": "text", "text": sample.text}]
    if sample.image is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": picture_url(sample)}})
    return [{"role": "user", "content": content}]


def expected(model: GrowingVLM, sample: Sample, task: str | None = None) -> tuple[str, str]:
    """Answer and task of a sample alone, by the base's own `generate`."""
    inputs = collator().prompts([sample])
    found = model.generate(inputs, task, max_new_tokens=TOKENS, do_sample=False)
    new = found.sequences[:, inputs["input_ids"].shape[1] :]
    (text,) = collator().tokenizer.batch_decode(new, skip_special_tokens=True)
    return text.strip(), model.tasks[found.tasks[0]]


def post(
    url: str, path: str, body: bytes | Iterator[bytes], **headers: str
) -> tuple[int, Any, Mapping[str, str]]:
    """Status, JSON and headers of a request, whatever it is made of."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("POST", path, body, {k: v for k, v in sent.items() if v})
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data), dict(response.getheaders())
    finally:
        connection.close()


def get(url: str, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def state(url: str, deployment: str = "executor") -> dict[str, Any]:
    """What a replica of a deployment says of itself; nothing where none does."""
    return get(url, "/healthz")[1][deployment] or {}


def chat(url: str, messages: Any, **more: Any) -> tuple[int, Any, Mapping[str, str]]:
    return post(
        url,
        "/v1/chat/completions",
        json.dumps({"model": "cmoe", "messages": messages} | more).encode(),
    )


def load(url: str, bodies: list[bytes], clients: int = 8) -> tuple[threading.Thread, list[Reply]]:
    """Requests of several clients, while something else happens."""
    replies: list[Reply] = []

    def ask() -> None:
        replies.extend(drive(url, bodies, clients=clients, key=KEY))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, replies


# OpenAI's client


def test_models_are_the_locating_one_and_each_task(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["cmoe", "cmoe:ScienceQA", "cmoe:VizWiz"]
    assert client.models.retrieve("cmoe:VizWiz").owned_by == "cmoe"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("cmoe:Grounding")


def test_answers_and_tasks_are_those_of_the_model(
    client: openai.OpenAI, model: GrowingVLM, store: Store, tasks: tuple[Task, ...]
) -> None:
    for task in tasks[:2]:
        for sample in task.test[:3]:
            for named in (None, task.name):
                name = "cmoe" if named is None else f"cmoe:{named}"
                found: Any = client.chat.completions.create(
                    model=name, messages=asking(sample), max_tokens=TOKENS
                )
                text, by = expected(model, sample, named)
                assert (found.choices[0].message.content, found.cmoe["task"]) == (text, by)
                assert found.cmoe["located"] == (named is None)
                assert found.model == name
                prompt = collator().prompts([sample])["input_ids"].shape[1]
                assert found.usage.prompt_tokens == prompt
                assert 1 <= found.usage.completion_tokens <= TOKENS
                assert found.cmoe["store_version"].startswith("2-")
                assert found.system_fingerprint == found.cmoe["store_version"]


def test_a_stream_says_what_the_whole_says(
    client: openai.OpenAI, model: GrowingVLM, tasks: tuple[Task, ...]
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
    assert text == expected(model, sample)[0]
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
    messages = asking(tasks[0].test[0])

    def said(**more: Any) -> Any:
        made = {"max_tokens": 30, "temperature": 2.0} | more
        return client.chat.completions.create(model="cmoe", messages=messages, **made).choices[0]

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
    client: openai.OpenAI, model: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    sample = tasks[1].test[0]
    turns = [
        ("system", "Answer."),
        ("user", sample.text),
        ("assistant", "yes"),
        ("user", "And the other?"),
    ]
    texts: list[Any] = [{"role": role, "content": text} for role, text in turns]
    for place in (1, 3):  # the turn that shows the picture, in front of its text
        spoken = [ChatTurn(role, (None, said) if i == place else (said,))
                  for i, (role, said) in enumerate(turns)]  # fmt: skip
        with sample.image.open("rb") as file:  # type: ignore[union-attr]
            inputs = collator().conversation(spoken, Image.open(file).convert("RGB"))
        found = model.generate(inputs, "VizWiz", max_new_tokens=TOKENS, do_sample=False)
        new = found.sequences[:, inputs["input_ids"].shape[1] :]
        (text,) = collator().tokenizer.batch_decode(new, skip_special_tokens=True)
        messages = [*texts]
        messages[place] = asking(sample)[0]
        messages[place]["content"][1]["text"] = turns[place][1]
        answer = client.chat.completions.create(
            model="cmoe:VizWiz", messages=messages, max_tokens=TOKENS
        )
        assert answer.choices[0].message.content == text.strip()


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


def test_locating_gives_a_posterior(url: str, model: GrowingVLM, tasks: tuple[Task, ...]) -> None:
    for task in tasks[:2]:
        body = json.dumps({"messages": asking(task.test[1])}).encode()
        status, found, _ = post(url, "/v1/locate", body)
        location = model.locate(collator().prompts([task.test[1]]))
        assert status == 200
        assert found["task"] == found["nearest"] == model.tasks[int(location.tasks[0])]
        assert [row["task"] for row in found["tasks"]] == list(model.tasks)
        scores = [row["score"] for row in found["tasks"]]
        assert scores == pytest.approx(location.scores[0].tolist(), abs=1e-3)
        chances = [row["probability"] for row in found["tasks"]]
        assert sum(chances) == pytest.approx(1)
        assert max(range(2), key=chances.__getitem__) == min(range(2), key=scores.__getitem__)


def test_errors_are_openais(client: openai.OpenAI, url: str, tasks: tuple[Task, ...]) -> None:
    messages = asking(tasks[0].test[0])
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=messages)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="cmoe:Nothing"):
        client.chat.completions.create(model="cmoe:Nothing", messages=messages)
    with pytest.raises(openai.NotFoundError, match=r"did you mean cmoe:VizWiz\?"):
        client.chat.completions.create(model="cmoe:vizwis", messages=messages)
    with pytest.raises(openai.BadRequestError, match=r"Unrecognized request argument.*: colour"):
        client.chat.completions.create(
            model="cmoe", messages=messages, extra_body={"colour": "red"}
        )
    with pytest.raises(openai.BadRequestError, match="n is 3; a request has one answer"):
        client.chat.completions.create(model="cmoe", messages=messages, n=3)
    with pytest.raises(openai.BadRequestError) as over:
        client.chat.completions.create(model="cmoe", messages=messages, max_tokens=401)
    assert over.value.param == "max_tokens"
    for key in ("wrong", KEY + "x"):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key=key).models.list()
    other = openai.OpenAI(base_url=f"{url}/v1", api_key="another")
    assert len(list(other.models.list())) == 3


@pytest.fixture(scope="module")
def long(client: openai.OpenAI, tasks: tuple[Task, ...]) -> dict[str, Any]:
    """A request whose answer takes its time."""
    for sample in tasks[0].test:
        made: Any = {"model": "cmoe:ScienceQA", "messages": asking(sample), "max_tokens": 300}
        found = client.chat.completions.create(**made)
        if found.usage is not None and found.usage.completion_tokens == 300:
            return dict(made)
    raise AssertionError("no sample has a long answer")


def test_a_client_that_gives_up_frees_its_place(
    url: str, client: openai.OpenAI, long: dict[str, Any]
) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).chat.completions.create(**long)
    stream = client.chat.completions.create(stream=True, **long)
    next(iter(stream))
    stream.close()

    def idle() -> bool:
        _, health = get(url, "/healthz")
        return bool(health["executor"]) and health["executor"]["running"] == 0

    until(idle, minutes=0.25)


def test_what_is_there_is_shown(url: str) -> None:
    status, health = get(url, "/healthz")
    assert (status, health["status"]) == (200, "ok")
    assert health["executor"]["tasks"] == ["ScienceQA", "VizWiz"]
    assert health["locator"]["version"] == health["executor"]["version"]
    assert get(url, "/readyz") == (200, {"ready": True})
    assert get(url, "/nowhere")[0] == 404
    with urllib.request.urlopen(f"{url}/healthz") as response:
        assert json.load(response) == {"status": "ok"}, "no more for one without a key"
    _, examples = get(url, "/examples")
    assert len(examples) == 8


def test_figures_for_prometheus_are_by_task(url: str) -> None:
    def scraped() -> dict[str, float]:
        request = urllib.request.Request(
            f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}
        )
        with urllib.request.urlopen(request) as response:
            text = response.read().decode()
        return {
            sample.name + "/" + sample.labels.get("task", ""): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    wanted = {f"ray_cmoe_{n}_seconds_count/VizWiz" for n in ("queue", "first_token", "token")}
    wanted |= {"ray_cmoe_locate_seconds_count/", "ray_cmoe_requests_total/VizWiz"}
    until(lambda: wanted <= scraped().keys())
    assert all(scraped()[name] >= 1 for name in wanted)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/metrics")


# Defences


def png(width: int, height: int, *, claimed: tuple[int, int] | None = None) -> bytes:
    """A picture of one colour; its header may claim another size than its data has."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    data = file.getvalue()
    if claimed is None:
        return data
    head = b"IHDR" + struct.pack(">II", *claimed) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def showing(data: bytes | str, kind: str = "image/png") -> list[Any]:
    url = data if isinstance(data, str) else f"data:{kind};base64,{base64.b64encode(data).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


BAD: dict[str, tuple[Any, int, str]] = {
    "a bomb": (showing(png(4, 4, claimed=(60_000, 60_000))), 400, "many more pixels than 250,000"),
    "a smaller bomb": (showing(png(4, 4, claimed=(9000, 9000))), 400, "9000 x 9000 pixels"),
    "a picture over the limit": (showing(png(600, 600)), 400, "600 x 600 pixels; at most 250,000"),
    "a thin picture": (
        showing(png(2, 60_000)),
        400,
        "2 x 60000 pixels, of which the base's processor makes up to 3,600,000,000",
    ),
    "a long picture": (showing(png(2, 90_000)), 400, "each side at most 65,535"),
    "one pixel": (showing(png(1, 1)), 400, "each side needs 2"),
    "no pixel": (showing(png(4, 4, claimed=(0, 4))), 400, "picture"),
    "a file over the limit": (showing(b"\x89PNG" + b"x" * 250_000), 400, "larger than 200,000"),
    "a damaged picture": (showing(png(64, 64)[:-40]), 400, "damaged"),
    "text as a picture": (showing(b"hello there"), 400, "not a picture"),
    "another format": (showing(saved("TIFF"), "image/tiff"), 400, "formats are JPEG, PNG, WEBP"),
    "a format under another's name": (showing(saved("PPM")), 400, "not a picture"),
    "no base64": (showing("data:image/png;base64,####"), 400, "isn't base64"),
    "a file's URL": (showing("file:///etc/passwd"), 400, "a data URL, http or https"),
    "another kind of data": (showing("data:text/html;base64,aGk="), 400, "data:image/"),
    "an unlisted host": (showing("http://example.com/a.png"), 400, "aren't fetched from"),
    "a private address": (showing("http://127.0.0.1:8265/"), 400, "isn't public"),
    "a private name": (showing("http://localhost:8265/"), 400, "isn't public"),
    "a user in a URL": (showing("http://me@localhost/a.png"), 400, "aren't fetched from"),
    "two pictures": (
        [{"role": "user", "content": showing(png(4, 4))[0]["content"] * 2}],
        400,
        "one at most",
    ),
    "an assistant's picture": (
        [{"role": "assistant", "content": showing(png(4, 4))[0]["content"]}],
        400,
        "only users show them",
    ),
    "the picture's token": ([{"role": "user", "content": "see <image> here"}], 400, "'<image>'"),
    "the end's token": ([{"role": "user", "content": "end</s>"}], 400, "'</s>'"),
    "much text": ([{"role": "user", "content": "x" * 2000}], 400, "2,000 bytes of text"),
    "many tokens": ([{"role": "user", "content": "#~ " * 320}], 400, "tokens; with an answer"),
    "many messages": (
        [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(41)],
        400,
        "41 messages; at most 32",
    ),
    "no message": ([], 400, "at least 1 item"),
    "an assistant last": (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        400,
        "must be a user's",
    ),
    "no question": ([{"role": "user", "content": " "}], 400, "question is empty"),
    "two users": ([{"role": "user", "content": "a"}] * 2, 400, "take turns"),
    "an unknown role": ([{"role": "tool", "content": "a"}], 400, "messages.0.role"),
    "an unknown part": ([{"role": "user", "content": [{"type": "audio"}]}], 400, "messages.0"),
    "an argument of the processor": (
        [{"role": "user", "content": "a", "images_kwargs": {"size": 10**9}}],
        400,
        "Unrecognized request argument supplied: messages.0.images_kwargs",
    ),
}


def replicas() -> dict[str, psutil.Process]:
    """The service's replicas, by deployment."""
    found = {}
    for process in psutil.process_iter(["cmdline", "ppid"]):
        name = " ".join(process.info["cmdline"] or ())
        if name.startswith("ray::ServeReplica:cmoe:"):
            found[re.split(r"[ .]", name.removeprefix("ray::ServeReplica:cmoe:"))[0]] = process
    return found


@pytest.mark.parametrize("what", BAD)
def test_a_bad_request_is_refused_with_its_reason(url: str, what: str) -> None:
    messages, status, cause = BAD[what]
    before = {name: p.memory_info().rss for name, p in replicas().items()}
    found, body, _ = chat(url, messages)
    assert (found, cause in body["error"]["message"]) == (status, True), body
    assert body["error"]["type"] == "invalid_request_error"
    after = {name: p.memory_info().rss for name, p in replicas().items()}
    assert all(after[name] - before[name] < 30 * 2**20 for name in before), "memory rose"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_before_it_is_read(url: str, chunked: bool) -> None:
    gateway = replicas()["gateway"]
    before = gateway.memory_info().rss

    def parts() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 2**20

    try:
        if chunked:
            status, body, _ = post(url, "/v1/chat/completions", parts())
        else:
            status, body, _ = post(url, "/v1/chat/completions", b"x" * (64 * 2**20))
        assert (status, body["error"]["code"]) == (413, "body_too_large")
    except (BrokenPipeError, ConnectionResetError):
        pass  # hung up on while it was still sending: as good
    # Ray's proxy reads ahead of the gateway until it is told to stop.
    assert gateway.memory_info().rss - before < 128 * 2**20
    assert get(url, "/readyz")[0] == 200


def test_other_bodies_and_methods_are_refused(url: str) -> None:
    path = "/v1/chat/completions"
    deep = b'{"model":' + b"[" * 100_000
    many = b'{"model":"cmoe","messages":[' + b"{}," * 100_000 + b"{}]}"
    fields = b"{" + b",".join(b'"a%d":0' % i for i in range(20_000)) + b"}"
    for body, headers, status in (
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (deep, {}, 400),
        (many, {}, 400),
        (fields, {}, 400),
        (b"[1]", {}, 400),
        (b"{}", {"Content_Type": "text/plain"}, 415),
        (b"{}", {"Authorization": ""}, 401),
        (b"{}", {"Authorization": "Basic abc"}, 401),
    ):
        begun = time.monotonic()
        found, said, _ = post(url, path, body, **headers)
        assert found == status, said
        assert time.monotonic() - begun < 5
        assert said["error"]["message"]
    assert get(url, path)[0] == 405


def test_a_body_is_taken_however_its_kind_is_spelled(url: str) -> None:
    body = json.dumps({"model": "cmoe", "messages": ASKING, "max_tokens": 1}).encode()
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/json;"):
        for start in (b"", b"\xef\xbb\xbf"):
            status, said, _ = post(url, "/v1/chat/completions", start + body, Content_Type=kind)
            assert status == 200, said


def test_a_host_is_reached_only_by_a_public_address() -> None:
    from cmoe.serving.gateway.images import public

    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1", "::ffff:10.0.0.1",
                    "0.0.0.0", "192.168.0.1", "100.64.0.1", "224.0.0.1", "fc00::1"):  # fmt: skip
        assert not public(address), address
    assert public("93.184.216.34")
    assert public("2606:2800:220:1::1")


def test_a_full_service_says_so_at_once(
    url: str, long: dict[str, Any], tasks: tuple[Task, ...]
) -> None:
    """More than may be in flight: the rest gets 429 and when to come back; nobody else suffers."""
    body = json.dumps(long | {"max_tokens": 80}).encode()
    replies = drive(url, [body] * 60, clients=60, key=KEY)
    assert {r.status for r in replies} == {200, 429}
    assert sum(r.status == 200 for r in replies) >= LIMITS["in_flight"]  # type: ignore[operator]
    assert max(r.seconds for r in replies if r.status == 429) < 5
    # As many as have room: whoever is answered asks again, so that it stays full for a while.
    busy, _ = load(url, [body] * 120, clients=LIMITS["in_flight"])  # type: ignore[arg-type]
    refused: list[Any] = []

    def full() -> bool:
        found = chat(url, asking(tasks[0].test[0]), max_tokens=1)
        refused.append(found)
        return found[0] == 429

    until(full, minutes=0.5)
    busy.join()
    _, said, headers = refused[-1]
    assert said["error"]["type"] == "rate_limit_error"
    assert int(headers["retry-after"]) >= 1


def test_after_many_bad_requests_it_still_answers(
    url: str, client: openai.OpenAI, tasks: tuple[Task, ...]
) -> None:
    """Good requests with bytes changed, cut, doubled, and fields of every kind."""
    rng = random.Random(7)
    good = request_of(tasks[0].test[0], tokens=2)
    kinds: list[Any] = [None, True, -1, 10**30, 1.5, "x", [], {}, [[]], "\x00", "\ud800".encode(
        "utf-16", "surrogatepass").decode("utf-16", "replace")]  # fmt: skip

    def fuzzed() -> bytes:
        way = rng.randrange(4)
        if way == 0:
            data = bytearray(good)
            for _ in range(rng.randrange(1, 20)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(data)
        if way == 1:
            return good[: rng.randrange(len(good))]
        value = json.loads(good)
        if way == 2:
            value[rng.choice([*value, "stop", "seed", "top_p", "stream", "n"])] = rng.choice(kinds)
        else:
            part = value["messages"][0]
            part[rng.choice(["role", "content", "name"])] = rng.choice(kinds)
        return json.dumps(value).encode()

    replies = drive(url, [fuzzed() for _ in range(FUZZ)], clients=8, key=KEY)
    statuses = {r.status for r in replies}
    assert statuses <= {200, 400, 404}, [r for r in replies if r.status not in (200, 400, 404)][:3]
    assert 400 in statuses
    found = client.chat.completions.create(
        model="cmoe", messages=asking(tasks[0].test[0]), max_tokens=2
    )
    assert found.choices[0].finish_reason


# Growth and loss, under load


def test_a_primitive_is_taken_without_a_restart(
    url: str, client: openai.OpenAI, store: Store, model: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    """Under load, without one failure; a broken one is refused before, and the old goes on."""
    samples = [*tasks[0].test[:10], *tasks[1].test[:10]]
    bodies = [request_of(sample, tokens=TOKENS) for sample in samples]
    thread, replies = load(url, bodies * 6)
    broken = Path(store.url) / "002.json"
    broken.write_text('{"index": 2, "task": "Broken"}')
    until(lambda: "002.json" in (state(url).get("refused") or ""))
    assert state(url)["version"]["tasks"] == 2
    assert get(url, "/healthz")[1]["status"] == "degraded"
    broken.unlink()
    fresh = load_model(Store.open(store.url), load_base(MINI_BASE)[0])
    record = store.append(make_primitive(fresh, tasks[2]))
    for part in ("executor", "locator"):
        until(lambda part=part: state(url, part).get("version", {}).get("digest") == record.digest)
    thread.join()
    assert {r.status for r in replies} == {200}, [r for r in replies if r.status != 200][:3]
    until(lambda: get(url, "/healthz")[1]["status"] == "ok")
    answers = {s.id: expected(model, s) for s in samples}
    for reply in replies:  # a sample of two tasks may be located anew once there is a third
        text, task = answers[samples[reply.number % len(samples)].id]
        assert reply.task != task or reply.text == text
    names = [m.id for m in client.models.list()]
    assert names[-1] == "cmoe:Grounding"
    sample = tasks[2].test[0]
    found: Any = client.chat.completions.create(
        model="cmoe", messages=asking(sample), max_tokens=TOKENS
    )
    assert (found.choices[0].message.content, found.cmoe["task"]) == expected(fresh, sample)
    assert found.cmoe["store_version"] == f"3-{record.digest[:12]}"


def test_a_killed_executor_comes_back_by_itself(
    url: str, client: openai.OpenAI, tasks: tuple[Task, ...]
) -> None:
    bodies = [request_of(sample, tokens=TOKENS) for sample in tasks[0].test[:20]]
    thread, replies = load(url, bodies * 10)
    time.sleep(2)
    replicas()["executor"].send_signal(signal.SIGKILL)
    thread.join()
    statuses = [r.status for r in replies]
    assert len(statuses) == len(bodies) * 10
    assert set(statuses) <= {200, 429, 503, 504}, set(statuses)
    assert 200 in statuses
    until(lambda: get(url, "/readyz")[0] == 200)
    found = client.chat.completions.create(
        model="cmoe", messages=asking(tasks[0].test[0]), max_tokens=2
    )
    assert found.choices[0].finish_reason


def test_an_executor_locates_where_its_store_says_so(
    tmp_path: Path, tasks: tuple[Task, ...]
) -> None:
    """The answering pass finds the task: a service without a locator deployment."""
    inline = make_store(tmp_path / "inline", tasks[:2], "inline")
    config = yaml.safe_load((ROOT / "configs" / "serve_mini.yaml").read_text())
    (application,) = config["applications"]
    application["args"]["reject_unknown"] = False
    application["deployments"] = [d for d in application["deployments"] if d["name"] != "locator"]
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    here = load_model(Store.open(inline.url), load_base(MINI_BASE)[0])
    with running_service(Path(inline.url), "--config", str(file), "--no-auth") as address:
        local = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        for task in tasks[:2]:
            found: Any = local.chat.completions.create(
                model="cmoe", messages=asking(task.test[0]), max_tokens=TOKENS
            )
            text, by = expected(here, task.test[0])
            assert (found.choices[0].message.content, found.cmoe["task"]) == (text, by)
            assert found.cmoe["located"]


def test_a_taken_port_is_refused(url: str, store: Store) -> None:
    """Two services would share it, and each would get some of the requests."""
    port = urlsplit(url).port
    with (
        pytest.raises(RuntimeError, match=f"port {port} is taken"),
        running_service(Path(store.url), "--no-auth", "--port", str(port)),
    ):
        pass
    with socket.create_connection(("127.0.0.1", port or 0)):
        pass
