"""A service on two environments: the executor is in vLLM's, all else in the project's own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.clients import SCRIPTS, require_answers
from support.jobs import until
from support.mini_store import copy_prefix
from support.paths import ROOT
from support.service import running_service, service_file
from support.service_client import KEY, TOKENS, ServiceClient, answer_alone, ask, asking

from cmoe.data.samples import Sample, Task
from cmoe.modeling.growing import GrowingVLM
from cmoe.serving.load import request_of
from cmoe.store.log import Store

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("vllm") is not None, reason="runs in the project's own"),
    pytest.mark.skipif(
        not (ROOT / ".venv-vllm" / ".installed").exists(),
        reason="no vLLM here: `make vllm` installs it",
    ),
]


@pytest.fixture(scope="module")
def growing_store(tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Store]) -> Store:
    """Its locator is placed inline, which vLLM can't: a locator in front does it."""
    return copy_prefix(stores["inline"], tmp_path_factory.mktemp("growing") / "store", 2)


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, growing_store: Store
) -> Iterator[ServiceClient]:
    folder = tmp_path_factory.mktemp("config")
    file = service_file(folder, shipped="serve_mini_vllm", poll_s=0.5, reject_unknown=False)
    arguments = (growing_store.url, "--config", str(file))
    with running_service(*arguments, environment={"CMOE_API_KEYS": KEY}) as running:
        yield ServiceClient(running, KEY)


def answered(
    service: ServiceClient, model: GrowingVLM, samples: list[Sample]
) -> list[tuple[Any, Any]]:
    """What many clients at a time get, beside what the model answers."""
    replies = service.drive([request_of(s, tokens=TOKENS) for s in samples], clients=8)
    assert {r.status for r in replies} == {200}
    return [
        ((r.text, r.task), answer_alone(model, s)) for r, s in zip(replies, samples, strict=True)
    ]


def test_answers_and_tasks_are_those_of_the_model(
    service: ServiceClient, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    samples = [sample for task in tasks[:2] for sample in task.test]
    pairs = answered(service, answering, samples)
    assert [found for found, _ in pairs] == [expected for _, expected in pairs]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_client_gets_the_answers_of_the_model(
    script: Path, service: ServiceClient, answering: GrowingVLM, tasks: tuple[Task, ...]
) -> None:
    require_answers(script, service, answering, tasks[1].test[0])


def test_a_stream_says_what_the_whole_says_and_stops_where_it_is_told(
    service: ServiceClient, tasks: tuple[Task, ...]
) -> None:
    client = service.openai_client()
    for sample in tasks[0].test[:4]:
        whole = ask(client, sample).choices[0].message.content
        made: dict[str, Any] = {"model": "cmoe", "messages": asking(sample), "max_tokens": TOKENS}
        chunks = client.chat.completions.create(stream=True, **made)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
        stop = whole[len(whole) // 2 :][:2]
        cut = ask(client, sample, stop=[stop]).choices[0]
        assert cut.message.content == whole.split(stop)[0].rstrip()
        assert cut.finish_reason == "stop"


def test_a_primitive_is_taken_under_load(
    service: ServiceClient, growing_store: Store, tasks: tuple[Task, ...], stores: dict[str, Store]
) -> None:
    bodies = [request_of(sample, tokens=TOKENS) for sample in tasks[0].test]
    thread, replies = service.load(bodies * 4)
    until(lambda: service.state()["running"] > 0)
    third = stores["inline"].read(2)
    Store.open(growing_store.url).append(third)
    until(lambda: len(service.state()["tasks"]) == 3)
    thread.join()
    assert {r.status for r in replies} == {200}
    client = service.openai_client()
    assert ask(client, tasks[2].test[0], "cmoe:Grounding").cmoe["task"] == "Grounding"


def test_answers_of_a_lost_executor_are_given_by_another(
    service: ServiceClient, tasks: tuple[Task, ...]
) -> None:
    bodies = [request_of(sample, tokens=TOKENS) for sample in tasks[0].test]
    thread, replies = service.load(bodies * 3, clients=4)
    until(lambda: service.state()["running"] > 0)
    lost = service.replicas()["executor"]
    engine = lost.children(recursive=True)
    lost.send_signal(signal.SIGKILL)
    thread.join()
    assert {r.status for r in replies} == {200}, [r for r in replies if r.status != 200][:3]
    until(lambda: not any(process.is_running() for process in engine))
