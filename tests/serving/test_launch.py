"""A service starts only if its file, its keys, its base and its port allow it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.mini_store import make_model
from support.paths import CONFIGS
from support.service import service_file
from support.serving_bases import qwen3_5

from cmoe.common import packages
from cmoe.common.log_lines import ENCODING
from cmoe.modeling.settings import ModelConfig
from cmoe.serving import launch
from cmoe.serving.bases import UnservedBaseError
from cmoe.serving.engines.builtin.executor import BuiltinExecutor
from cmoe.serving.launch import (
    Service,
    ServiceError,
    cause_of,
    is_this_machine,
    read_service,
    serving,
)
from cmoe.serving.settings import ServeConfig
from cmoe.store.model import create_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("stores") / "store"
    create_store(folder, make_model(), name="mini", revision="default", config={})
    return str(folder)


def test_a_service_without_keys_listens_on_loopback_alone(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CMOE_API_KEYS", raising=False)
    file = service_file(tmp_path, store=store)
    with pytest.raises(ServiceError, match="no API key: put one into CMOE_API_KEYS"):
        read_service(file)
    assert not read_service(file, auth=False).config.auth.required
    for host in ("0.0.0.0", "10.0.0.1", "example.com", "::"):
        with pytest.raises(ServiceError, match="listens on loopback alone"):
            read_service(file, auth=False, host=host)
    monkeypatch.setenv("CMOE_API_KEYS", "key")
    assert read_service(file, host="0.0.0.0").http["host"] == "0.0.0.0"
    assert [is_this_machine(h) for h in ("localhost", "127.8.8.8", "::1", "128.0.0.1")] == [
        True,
        True,
        True,
        False,
    ]


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
    ours = "cmoe.serving.bases.UnservedBaseError: a base of type 'x' can't be served: it is\n"
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
        read_service(service_file(tmp_path, **{"store": store, **changes}))


def test_a_service_refuses_such_a_base_before_it_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Ray starts, where the base is on this machine; and in each replica."""
    store = create_store(tmp_path / "store", make_model(), name="m", revision="main", config={})
    qwen3_5().save_pretrained(tmp_path / "base")
    served = ServeConfig(store.url, model=ModelConfig(str(tmp_path / "base")))
    with pytest.raises(UnservedBaseError, match="linear_attention"):
        asyncio.run(BuiltinExecutor.load(store, served))
    service = Service(served, {"host": "127.0.0.1", "port": 1}, None, "HeadOnly", {}, "cmoe", "/")
    monkeypatch.setattr(launch, "_require_port", lambda *_: pytest.fail("Ray is about to start"))
    with pytest.raises(ServiceError, match="'qwen3_5' can't be served: it has"), serving(service):
        pass


def test_a_service_logs_in_json_where_ray_does_unless_its_file_says_otherwise(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = service_file(tmp_path, store=store)
    assert read_service(file, auth=False).logging is None
    monkeypatch.setenv(ENCODING, "JSON")
    assert read_service(file, auth=False).logging.encoding == "JSON"
    file.write_text(f"{file.read_text()}logging_config: {{log_level: ERROR}}\n")
    found = read_service(file, auth=False).logging
    assert (found.encoding, found.log_level) == ("JSON", "ERROR")
    file.write_text(file.read_text().replace("{log", "{encoding: TEXT, log"))
    assert read_service(file, auth=False).logging.encoding == "TEXT"


@pytest.mark.parametrize("python", [None, "nowhere/bin/python"])
def test_an_engine_whose_package_is_nowhere_is_refused_before_ray_starts(
    store: str, monkeypatch: pytest.MonkeyPatch, python: str | None
) -> None:
    service = read_service(CONFIGS / "serve_mini_vllm.yaml", store=store, auth=False)
    environment = {} if python is None else {"runtime_env": {"py_executable": python}}
    service = replace(service, deployments={"executor": {"ray_actor_options": environment}})
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    monkeypatch.setattr(launch, "_require_port", lambda *_: pytest.fail("Ray is about to start"))
    told = "engine.kind is vllm, and .*; `make vllm` builds"
    with pytest.raises(ServiceError, match=told), serving(service):
        pass


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("serve_mini_vllm", "quantised .model.quantization nf4., .*set engine.vllm.quantization"),
        ("serve_mini", "nf4, and bitsandbytes isn't installed; `pip install 'cmoe.quantized.'`"),
    ],
)
def test_a_quantised_base_that_cant_be_served_so_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, said: str
) -> None:
    written = {"model": vars(ModelConfig(quantization="nf4"))}
    model = make_model()
    store = create_store(tmp_path, model, name="mini", revision="default", config=written)
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    monkeypatch.setattr(launch, "_require_port", lambda *_: pytest.fail("Ray is about to start"))
    service = read_service(CONFIGS / f"{config}.yaml", store=store.url, auth=False)
    with pytest.raises(ServiceError, match=said), serving(service):
        pass


def test_a_deployment_s_python_may_be_named_from_this_folder(store: str) -> None:
    service = read_service(CONFIGS / "serve_mini_vllm.yaml", store=store, auth=False)
    options = service.deployments["executor"]["ray_actor_options"]
    assert Path(options["runtime_env"]["py_executable"]) == Path.cwd() / ".venv-vllm/bin/python"
