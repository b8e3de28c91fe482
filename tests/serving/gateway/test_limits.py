"""What stands at the border: files of services, keys, hosts, and prompts as evaluation has them."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from support.mini_store import collator, make_data, make_model
from support.paths import CONFIGS

from cmoe.data.batches import ChatTurn
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.images import fetch
from cmoe.serving.gateway.keys import Keys
from cmoe.serving.gateway.metrics import merged
from cmoe.serving.launch import ServiceError, cause_of, loopback, read_service
from cmoe.serving.settings import AuthConfig, LimitsConfig, ServeConfig
from cmoe.store.model import create_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("stores") / "store"
    create_store(folder, make_model(), name="mini", revision="default", config={})
    return str(folder)


# Services


@pytest.mark.parametrize("name", ["serve_mini.yaml", "serve_llava_7b.yaml"])
def test_files_of_services_name_what_is_there(name: str) -> None:
    """Every deployment is one of ours, every argument a known one, and all is Ray's own format."""
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema(**yaml.safe_load((CONFIGS / name).read_text()))
    (application,) = schema.applications
    assert application.import_path == "cmoe.serving.app:build"
    assert {d.name for d in application.deployments} == {"gateway", "locator", "executor"}
    config = ServeConfig.of(application.args)
    assert config.auth.required
    options = {d.name: d for d in application.deployments}
    assert options["executor"].max_ongoing_requests >= config.engine.max_batch
    for one in options.values():
        assert one.max_queued_requests > 0, "bounded"


def service(folder: Path, **changes: Any) -> Path:
    values = yaml.safe_load((CONFIGS / "serve_mini.yaml").read_text())
    values["applications"][0]["args"] |= changes
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_a_service_without_keys_listens_on_loopback_alone(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CMOE_API_KEYS", raising=False)
    file = service(tmp_path, store=store)
    with pytest.raises(ServiceError, match="no API key: put one into CMOE_API_KEYS"):
        read_service(file)
    assert not read_service(file, auth=False).config.auth.required
    for host in ("0.0.0.0", "10.0.0.1", "example.com", "::"):
        with pytest.raises(ServiceError, match="listens on loopback alone"):
            read_service(file, auth=False, host=host)
    monkeypatch.setenv("CMOE_API_KEYS", "key")
    assert read_service(file, host="0.0.0.0").http["host"] == "0.0.0.0"
    assert [loopback(h) for h in ("localhost", "127.8.8.8", "::1", "128.0.0.1")] == [
        True,
        True,
        True,
        False,
    ]


MINI = (CONFIGS / "serve_mini.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (MINI.replace("    batch: 16", "    poll_s: 3\n    batch: 16"), "'poll_s' stands.*line 18"),
        (MINI.replace("http_options:", "http_options: ["), "line 9, column 7"),
        (MINI.replace("proxy_loc", "proxyloc"), "proxylocation: .* did you mean proxy_location"),
        (MINI.replace("  port:", "  prot:"), r"http_options.prot: .* did you mean port\?"),
        (MINI.replace("route_prefix", "prefix"), "applications.0.prefix: there is no such key"),
        (MINI.replace("poll_s", "pol_s"), "applications.0.args.pol_s: .* mean poll_s"),
        (MINI.replace("in_flight", "in_fligth"), "args.limits.in_fligth: .* mean in_flight"),
        (MINI.replace("num_replicas", "num_replica"), "deployments.0.num_replica: .* num_replicas"),
        (MINI.replace("num_cpus", "num_cpu"), "ray_actor_options.num_cpu: .* mean num_cpus"),
        (MINI.replace(" gateway", " gatway"), "deployments.0.name is 'gatway'; .* mean gateway"),
        (MINI.replace("app:build", "app:make"), "import_path is 'cmoe.serving.app:make'; cmoe"),
        (
            MINI.replace("HeadOnly", "Head"),
            "proxy_location: Input should be 'Disabled', 'HeadOnly'",
        ),
        (MINI.replace("num_replicas: 1", "num_replicas: x"), "deployments.0: `num_replicas` must"),
        (MINI.replace("port: 8000", "port: 80000"), "port.* is 80000; 1 to 65535"),
        (MINI + MINI[MINI.index("- name: cmoe") :].replace("/\n", "/b\n"), "there are 2; one is"),
        (MINI[: MINI.index("applications")], "applications: there are 0; one is served here"),
        (MINI[: MINI.index("  args:")] + "  args:\n", "applications.0.args"),
        ("", "a mapping with the key applications is needed, not None"),
        ("- a\n", "a mapping with the key applications is needed"),
    ],
)
def test_a_wrong_file_of_a_service_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cause: str
) -> None:
    """Ray itself would drop most of these keys without a word."""
    monkeypatch.setenv("CMOE_API_KEYS", "key")
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ServiceError, match=cause) as refused:
        read_service(file)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for file, cause in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ServiceError, match=f"{file}: {cause}.*--config names"):
            read_service(file)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ServiceError, match=r"bytes\.yaml: .*decode byte 0xff"):
        read_service(tmp_path / "bytes.yaml")


REPORT = """Deploying application cmoe failed: The deployment failed to start 3 times in a row.
This may be due to a problem with its constructor or initial health check failing. Error:
\x1b[36mray::ServeReplica:cmoe:executor.initialize_and_get_metadata()\x1b[39m (pid=1, ip=127.0.0.1)
  File "/usr/lib/python3.11/concurrent/futures/_base.py", line 456, in result
    return self.__get_result()
RuntimeError: Traceback (most recent call last):
  File "/site-packages/ray/serve/_private/replica.py", line 1, in initialize_and_get_metadata
    following, processor = await asyncio.to_thread(_verified, config)
"""


def test_what_a_replica_failed_with_is_told_without_traces() -> None:
    ours = (
        "cmoe.serving.engines.builtin.decoding.UnservedBaseError: "
        "a base of type 'x' can't be served: it is\n"
    )
    assert cause_of(REPORT + ours) == "a base of type 'x' can't be served: it is"
    theirs = "torch.OutOfMemoryError: CUDA out of memory. Tried\n to allocate 2 GiB.\n"
    assert cause_of(REPORT + theirs) == (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."
    )
    assert cause_of("no trace of it") == "no trace of it"


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"limits": {"in_flight": 0}}, "limits.in_flight is 0; more than 0"),
        ({"limits": {"answer_default": 999}}, "answer_default is 999; at most"),
        ({"engine": {"max_bach": 3}}, "max_bach"),
        ({"poll_s": -1}, "poll_s is -1"),
        ({"store": "nowhere/at/all"}, "there is no store here"),
        ({"auth": {"keys_file": "nowhere"}}, "auth.keys_file"),
    ],
)
def test_wrong_services_are_refused(
    tmp_path: Path,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    cause: str,
) -> None:
    monkeypatch.setenv("CMOE_API_KEYS", "key")
    with pytest.raises(ServiceError, match=cause):
        read_service(service(tmp_path, **{"store": store, **changes}))


# Keys


def refusal(keys: Keys, header: str | None, client: str | None = "8.8.8.8") -> int | None:
    try:
        keys.admit(header, client)
    except RequestError as error:
        return error.status
    return None


def test_keys_of_file_and_environment_are_known(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    lines = [hashlib.sha256(k.encode()).hexdigest() for k in ("one", "two")]
    file.write_text(f"# ours\n{lines[0]}  alice\n\n{lines[1]} # bob\n")
    keys = Keys.of(AuthConfig(keys_file=str(file)), {"CMOE_API_KEYS": "three, four"})
    for key in ("one", "two", "three", "four"):
        assert refusal(keys, f"Bearer {key}") is None
        assert refusal(keys, f"bearer {key}") is None
    for header in (None, "", "Bearer", "Bearer five", f"Bearer {lines[0]}", "Basic one", "one"):
        assert refusal(keys, header) == 401
    assert b"one" not in b"".join(str(v).encode() for v in vars(keys).values())
    file.write_text("one\n")
    with pytest.raises(ValueError, match=r"keys:1: not a sha256 in hex"):
        Keys.of(AuthConfig(keys_file=str(file)), {})


def test_without_keys_only_this_machine_may_ask() -> None:
    keys = Keys.of(AuthConfig(required=False), {})
    assert refusal(keys, None, "127.0.0.1") is refusal(keys, None, "::1") is None
    for client in ("10.0.0.2", "8.8.8.8", None, "unix"):
        assert refusal(keys, None, client) == 403


# Prompts


def test_a_question_is_prompted_as_evaluation_prompts_it(tmp_path: Path) -> None:
    """Token for token and pixel for pixel: else the answers would not be those of the reports."""
    for task in make_data(tmp_path / "coin"):
        for sample in task.test[:4]:
            picture = None
            if sample.image is not None:
                with sample.image.open("rb") as file:
                    picture = Image.open(file).convert("RGB")
            parts = (sample.text,) if picture is None else (None, sample.text)
            made = collator().conversation([ChatTurn("user", parts)], picture)
            whole = collator().prompts([sample])
            assert made.keys() == whole.keys()
            assert all(torch.equal(made[name], whole[name]) for name in whole)


# Pictures by URL


Pages = dict[str, tuple[int, dict[str, str], bytes]]


@pytest.fixture
def host() -> Iterator[Callable[[Pages], str]]:
    """A real HTTP server on loopback, and its address."""
    servers = []

    def start(pages: Pages) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = pages[self.path]
                if self.path == "/slow":
                    time.sleep(2)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(BrokenPipeError):  # who asked may have gone
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing is said."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://localhost:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()


def test_a_picture_is_fetched_within_limits_alone(host: Callable[[Pages], str]) -> None:
    limits = LimitsConfig(hosts=("localhost",), picture_bytes=1000, fetch_s=0.5)
    address = host(
        {
            "/a.png": (200, {}, b"picture"),
            "/moved": (302, {"Location": "/a.png"}, b""),
            "/large": (200, {}, b"x" * 100_000),
            "/slow": (200, {}, b"late"),
            "/gone": (404, {}, b""),
        }
    )

    def fetched(path: str, *, anywhere: bool = True) -> bytes:
        url = path if "://" in path else address + path
        allowed = {"allowed": lambda _: True} if anywhere else {}
        return asyncio.run(fetch(url, limits, **allowed))

    assert fetched("/a.png") == b"picture"
    for path, cause in (
        ("/moved", "answered 302"),
        ("/gone", "answered 404"),
        ("/large", "larger than 1,000"),
        ("/slow", "longer than 0.5 s"),
        ("ftp://localhost/a.png", "data URL, http or https"),
        ("http://elsewhere/a.png", "aren't fetched from 'elsewhere'"),
        ("http://localhost:99999/a.png", "isn't one"),
    ):
        with pytest.raises(RequestError, match=cause) as refused:
            fetched(path)
        assert refused.value.status == 400
    with pytest.raises(RequestError, match="isn't public"):
        fetched("/a.png", anywhere=False)
    with pytest.raises(RequestError, match="pictures by URL are off"):
        asyncio.run(fetch(f"{address}/a.png", LimitsConfig()))


def test_figures_of_several_nodes_are_one_page() -> None:
    pages = [
        f'# HELP ray_cmoe_a help\n# TYPE ray_cmoe_a counter\nray_cmoe_a{{node="{n}"}} {n}\n'
        "# HELP ray_other x\n# TYPE ray_other gauge\nray_other 1\n"
        for n in (1, 2)
    ]
    assert merged([*pages, ""]).splitlines() == [
        "# HELP ray_cmoe_a help",
        "# TYPE ray_cmoe_a counter",
        'ray_cmoe_a{node="1"} 1',
        'ray_cmoe_a{node="2"} 2',
    ]
