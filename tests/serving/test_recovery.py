"""A real service loses its processes: what clients get meanwhile, and what it starts again with."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from support.jobs import until
from support.service import running_service, service_file
from support.service_client import KEY, TOKENS, ServiceClient, ask

from cmoe.data.samples import Task
from cmoe.serving.load import request_of
from cmoe.store.log import Store

pytestmark = pytest.mark.ray  # which the service runs on


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, growing_store: Store
) -> Iterator[ServiceClient]:
    """A service with two gateways, as it is shipped."""
    limits = {"answer_tokens": 400}
    file = service_file(
        tmp_path_factory.mktemp("config"),
        gateways=2,
        poll_s=0.5,
        reject_unknown=False,
        limits=limits,
    )
    arguments = (growing_store.url, "--config", str(file))
    with running_service(*arguments, environment={"CMOE_API_KEYS": KEY}) as running:
        yield ServiceClient(running, KEY)


def kill(service: ServiceClient, deployment: str) -> None:
    for process in service.running.processes()[deployment]:
        process.send_signal(signal.SIGKILL)


def until_ready(service: ServiceClient) -> None:
    until(lambda: service.get("/readyz")[0] == 200)


def test_answers_of_a_lost_executor_are_given_by_another(
    service: ServiceClient, tasks: tuple[Task, ...]
) -> None:
    """No client hears of it: each request waits for the new one."""
    bodies = [request_of(sample, tokens=TOKENS) for sample in tasks[0].test[:20]]
    thread, replies = service.load(bodies * 4, clients=4)
    until(lambda: service.state().get("running", 0) > 0)
    kill(service, "executor")
    thread.join()
    assert {r.status for r in replies} == {200}, [r for r in replies if r.status != 200][:3]


def test_requests_of_lost_gateways_get_an_error_object(
    service: ServiceClient, client: openai.OpenAI, long: dict[str, Any]
) -> None:
    def whole() -> tuple[int, Any, Any]:
        return service.chat(long["messages"], max_tokens=long["max_tokens"])

    def streamed() -> str:
        return "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(stream=True, **long)
        )

    with ThreadPoolExecutor(6) as clients:
        wholes = [clients.submit(whole) for _ in range(4)]
        streams = [clients.submit(streamed) for _ in range(2)]
        until(lambda: service.state().get("running", 0) >= 6)
        kill(service, "gateway")
    lost = [response for each in wholes if (response := each.result())[0] != 200]
    for status, body, headers in lost:
        assert (status, body["error"]["code"]) == (503, "away")
        assert int(headers["retry-after"]) >= 1
    errors = [error for each in streams if (error := each.exception()) is not None]
    assert all(isinstance(error, openai.APIError) for error in errors), errors
    assert lost
    assert errors
    until_ready(service)


def test_a_lost_proxy_comes_back(
    service: ServiceClient, client: openai.OpenAI, tasks: tuple[Task, ...]
) -> None:
    service.running.proxy().send_signal(signal.SIGKILL)

    def answered() -> bool:
        try:
            return service.get("/readyz")[0] == 200
        except OSError:
            return False

    until(lambda: not answered())
    until(answered)
    assert ask(client, tasks[0].test[0], max_tokens=2).choices[0].finish_reason


def test_a_replica_starts_only_with_the_whole_store(
    service: ServiceClient, client: openai.OpenAI, growing_store: Store, tasks: tuple[Task, ...]
) -> None:
    """Until then the service isn't ready; the executor that was there would have gone on."""
    (file,) = Path(growing_store.url).glob("001-*/experts.safetensors")
    whole = file.read_bytes()
    os.truncate(file, 2**40)
    until_ready(service)
    kill(service, "executor")
    for _ in range(2):  # both gateways
        until(lambda: service.get("/readyz")[0] == 503)
        until(lambda: service.state() == {})
    with pytest.raises(openai.APIError):
        client.with_options(timeout=10).chat.completions.create(
            model="cmoe:VizWiz", messages=[{"role": "user", "content": "Which?"}], max_tokens=2
        )
    assert service.get("/readyz")[0] == 503
    file.write_bytes(whole)
    until_ready(service)
    found = ask(client, tasks[1].test[0], "cmoe:VizWiz", max_tokens=2)
    assert found.cmoe["store_version"].startswith("2-")
