"""Fault tolerance of Ray's control service: what the component says, and Redis with its file."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster_files import (
    MACHINE_S,
    RENDERED,
    STREAM,
    cluster_of,
    config_of,
    container_of,
    documents,
    pods,
    resource,
    text_of,
)
from support.jobs import until
from support.ports import free_port

PASSWORD = "of-a-test"
WITH_REDIS = [name for name in RENDERED if "redis" in name or name.startswith("service")]

every_one = pytest.mark.parametrize("name", WITH_REDIS)


def kept(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["kind"], each["metadata"]["name"]): each for each in documents(name)}


@every_one
def test_the_head_finds_redis_and_its_password(name: str) -> None:
    options = cluster_of(name)["gcsFaultToleranceOptions"]
    service, _, port = options["redisAddress"].partition(":")
    assert int(port) == kept(name)["Service", service]["spec"]["ports"][0]["port"]
    secret = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    redis = container_of(kept(name)["StatefulSet", service]["spec"]["template"])
    (variable,) = redis["env"]
    assert variable["valueFrom"]["secretKeyRef"] == secret
    assert f"generic {secret['name']} --from-file={secret['key']}" in text_of("README.md")
    # What KubeRay's own validation refuses beside these options.
    head = container_of(cluster_of(name)["headGroupSpec"]["template"])
    assert not {each["name"] for each in head["env"]} & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"}


@every_one
def test_workers_wait_longer_for_a_head_than_it_takes_to_make_one(name: str) -> None:
    head = cluster_of(name)["headGroupSpec"]["template"]["spec"]
    given_up = max(each["tolerationSeconds"] for each in head["tolerations"])
    for part, template in pods(name):
        if part not in ("head", "submitter"):
            variables = {each["name"]: each.get("value") for each in container_of(template)["env"]}
            waits = int(variables["RAY_gcs_rpc_server_reconnect_timeout_s"] or 0)
            assert waits > given_up + MACHINE_S


def test_the_driver_of_a_job_on_redis_is_on_a_worker_which_has_room_for_it() -> None:
    name = "eight-gpus + redis + shared-cache + pre-pull"
    assert resource(name)["spec"]["entrypointNumCpus"] == 1
    for group in cluster_of(name)["workerGroupSpecs"]:
        limits = container_of(group["template"])["resources"]["limits"]
        each = config_of(STREAM)["cluster"]["cpus_per_worker"]
        assert limits["cpu"] >= limits["nvidia.com/gpu"] * each + 1
    assert "entrypointNumCpus" not in resource("eight-gpus")["spec"]


def test_who_has_no_redis_waits_as_ray_does() -> None:
    """A new head ends the old head's workers then: waiting would only cost."""
    assert "gcsFaultToleranceOptions" not in cluster_of("eight-gpus")
    for _, template in pods("eight-gpus"):
        for each in container_of(template).get("env", []):
            assert not each["name"].startswith("RAY_gcs")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[dict[str, str], Any]]:
    """Redis as the manifest starts it, on loopback and in another folder."""
    for program in ("redis-server", "redis-cli"):
        if subprocess.run(["sh", "-c", f"command -v {program}"], capture_output=True).returncode:
            pytest.skip(f"no {program}: `apt install redis-server`")
    found = kept("service")
    container = container_of(found["StatefulSet", "cmoe-redis"]["spec"]["template"])
    text = found["ConfigMap", "cmoe-redis"]["data"]["redis.conf"]
    assert "dir /data\n" in text
    (tmp_path / "data").mkdir()
    port = free_port()
    file = tmp_path / "redis.conf"
    file.write_text(
        text.replace("/data", str(tmp_path / "data")) + f"port {port}\nbind 127.0.0.1\n"
    )
    (mount,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "config"]
    shell, flag, script = container["command"]
    environment = {"PATH": "/usr/bin:/bin", "REDISCLI_AUTH": PASSWORD, "PORT": str(port)}
    command = [shell, flag, script.replace(f"{mount}/redis.conf", str(file))]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield environment, container
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0  # the signal reached Redis itself


def probe(environment: dict[str, str], container: dict[str, Any]) -> bool:
    shell, flag, script = container["readinessProbe"]["exec"]["command"]
    script = script.replace("redis-cli", f"redis-cli -p {environment['PORT']}")
    done = subprocess.run([shell, flag, script], env=environment, capture_output=True)
    return done.returncode == 0


def test_redis_takes_its_file_and_asks_for_the_password(
    running: tuple[dict[str, str], dict[str, Any]],
) -> None:
    environment, container = running
    until(lambda: probe(environment, container), minutes=1)
    for wrong in ("another", ""):
        assert not probe({**environment, "REDISCLI_AUTH": wrong}, container)
    asked = ["redis-cli", "-p", environment["PORT"], "config", "get", "append*"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    assert "appendfsync\nalways\n" in done.stdout
