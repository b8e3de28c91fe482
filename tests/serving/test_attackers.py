"""A service on a real Ray Serve among attackers: all others are answered as before."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import psutil
import pytest
from support.hostile_pictures import HOSTILE, HOSTILE_URLS, data_url
from support.raw_http import answer, asked, connection, head, posted
from support.service import running_service, service_file
from support.service_client import ServiceClient

from cmoe.store.log import Store

pytestmark = pytest.mark.ray  # which the service runs on

LIMITS = {"in_flight": 12, "bodies": 16, "body_s": 3.0, "deadline_s": 30.0}
ASKING = [{"role": "user", "content": "Which of them?"}]


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Store]
) -> Iterator[ServiceClient]:
    """A service without keys."""
    folder = tmp_path_factory.mktemp("open")
    file = service_file(folder, limits=LIMITS, auth={"required": False})
    with running_service(stores["front"].url, "--config", str(file)) as running:
        yield ServiceClient(running, "")


def body(url: str) -> bytes:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}]
    return json.dumps({"model": "cmoe", "messages": messages, "max_tokens": 1}).encode()


def require_answering(service: ServiceClient) -> None:
    begun = time.monotonic()
    assert service.chat(ASKING, max_tokens=1)[0] == 200
    assert time.monotonic() - begun < 10


def test_hostile_pictures_are_refused_and_others_answered(service: ServiceClient) -> None:
    urls = [*(data_url(make()) for make in HOSTILE.values()), *(m() for m in HOSTILE_URLS.values())]
    require_answering(service)
    gateway = service.replicas()["gateway"]
    before = gateway.memory_info().rss
    for _ in range(2):
        thread, replies = service.load([body(url) for url in urls], clients=8)
        while thread.is_alive():
            require_answering(service)
        thread.join()
        assert len(replies) == len(urls)
        assert {r.status for r in replies} == {200, 400}
    assert gateway.memory_info().rss - before < 64 * 2**20
    assert service.get("/healthz")[1]["status"] == "ok"


def test_slow_bodies_take_nobodys_place(service: ServiceClient) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connection(service.url)) for _ in range(70)]
        for each in slow:
            each.sendall(posted(5000) + b"{")
        for _ in range(5):
            require_answering(service)
        for each in slow:
            found = answer(each)
            assert (found.status, found.body["error"]["code"]) == (408, "body_too_slow")


def test_headers_and_names_are_looked_at(service: ServiceClient) -> None:
    assert asked(service.url, head("/readyz", "Cookie: " + "x" * 20_000)).status == 200
    found = asked(service.url, head("/readyz", "Cookie: " + "x" * 2**20))
    assert (found.status, found.body["error"]["code"]) == (431, "headers_too_large")
    for path in ("/", "/examples", "/healthz", "/readyz", "/metrics", "/v1/models"):
        found = asked(service.url, head(path, host="evil.example"))
        assert (found.status, found.body["error"]["code"]) == (421, "host_not_allowed"), path
    # A client would have Ray end or keep its request.
    ended = head("/readyz", "X-Request-Timeout-Seconds: 0.000001")
    assert asked(service.url, ended).status == 200


def test_nothing_listens_beyond_this_machine(service: ServiceClient) -> None:
    """Neither the service nor any process of the Ray that it has started."""
    found, listening = set(), 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    listening += 1
                    if not ipaddress.ip_address(each.laddr.ip.removeprefix("::ffff:")).is_loopback:
                        found.add((process.name(), each.laddr))
    assert listening > 3
    assert not found
    assert service.get("/readyz")[0] == 200
