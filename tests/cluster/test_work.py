"""What the clusters are for: the stream, the sweep and the service find all that they need."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.cluster_files import (
    IMAGE,
    JOBS,
    MACHINE_S,
    RENDERED,
    ROOT,
    SERVICE,
    STREAM,
    STREAMS,
    cluster_of,
    config_of,
    container_of,
    copied,
    flags,
    launcher,
    plain_pods,
    pods,
    resource,
    text_of,
    without,
)

Groups = list[tuple[str, int, int, int]]


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_files_are_in_the_image(name: str) -> None:
    script = shlex.split(resource(name)["spec"]["entrypoint"])[1]
    for file in (script, flags(name)["--config"]):
        assert (ROOT / file).is_file()
        assert file.split("/")[0] in copied(IMAGE)


@pytest.mark.parametrize("name", JOBS)
def test_a_lost_job_is_submitted_again_and_an_ended_one_leaves_no_cluster(name: str) -> None:
    spec = resource(name)["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert dict(pods(name))["submitter"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", STREAMS)
def test_the_stream_keeps_all_of_it_in_the_bucket(name: str) -> None:
    given = flags(name)
    assert given["--config"] == STREAM
    assert given["--runs"].startswith("s3://YOUR-BUCKET/")
    assert given["--data.root"].startswith("s3://YOUR-BUCKET/")


def on_aws() -> Groups:
    types = launcher()["available_node_types"]
    return [
        (name, each["max_workers"], each["resources"]["CPU"], each["resources"]["GPU"])
        for name, each in types.items()
        if name != "head"
    ]


def on_kubernetes(name: str = "eight-gpus") -> Groups:
    groups = cluster_of(name)["workerGroupSpecs"]
    limits = [container_of(group["template"])["resources"]["limits"] for group in groups]
    return [
        (group["groupName"], group["maxReplicas"], limit["cpu"], limit["nvidia.com/gpu"])
        for group, limit in zip(groups, limits, strict=True)
    ]


@pytest.mark.parametrize("groups", [on_aws, on_kubernetes])
def test_the_stream_goes_on_when_the_spot_machines_go(groups: Any) -> None:
    """And has all its workers where there are only spot machines."""
    given, each = flags("eight-gpus"), config_of(STREAM)["cluster"]["cpus_per_worker"]
    workers = {name: count * min(gpus, cpus // each) for name, count, cpus, gpus in groups()}
    (on_demand,) = [count for name, count in workers.items() if not name.endswith("spot")]
    assert on_demand >= int(given["--cluster.min_workers"])
    assert sum(workers.values()) - on_demand >= int(given["--cluster.workers"])


def test_the_stream_on_one_gpu_asks_for_one_worker() -> None:
    ((_, count, cpus, gpus),) = on_kubernetes("one-gpu")
    given = flags("one-gpu")
    assert given["--cluster.workers"] == "1" == str(count * gpus)
    assert "--cluster.min_workers" not in given
    assert cpus >= config_of(STREAM)["cluster"]["cpus_per_worker"]


@pytest.mark.parametrize("name", RENDERED)
def test_every_pod_of_ray_has_the_hubs_files_in_the_cache_and_the_token_if_there_is_one(
    name: str,
) -> None:
    fetching = [template for part, template in plain_pods(name) if part == "cmoe-fetch"]
    for template in [*(t for part, t in pods(name) if part != "submitter"), *fetching]:
        container = container_of(template)
        variables = {each["name"]: each for each in container["env"]}
        assert variables["HF_HOME"]["value"] == "/cache/huggingface"
        secret = {"name": "cmoe-hub", "key": "HF_TOKEN", "optional": True}
        assert variables["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": secret}
        (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/cache"]
        (volume,) = [v for v in template["spec"]["volumes"] if v["name"] == mount["name"]]
        claims = {"persistentVolumeClaim": {"claimName": "cmoe-cache"}}
        assert ("shared-cache" in name) == (without(volume, "name") == claims)
    assert "generic cmoe-hub --from-file=HF_TOKEN" in text_of("README.md")


def test_what_is_fetched_is_the_streams_base() -> None:
    (template,) = [t for part, t in plain_pods("one-gpu + shared-cache") if part == "cmoe-fetch"]
    model = config_of(STREAM)["model"]
    command = ["hf", "download", model["name"], "--revision", model["revision"]]
    assert container_of(template)["command"] == command
    program = Path(sys.executable).with_name(command[0])
    said = subprocess.run([program, "download", "--help"], capture_output=True, text=True)
    assert "--revision" in said.stdout


def test_the_sweep_keeps_all_of_it_on_the_shared_disk() -> None:
    given = flags("sweep")
    for part, template in pods("sweep"):
        if part != "submitter":
            volumes = template["spec"]["volumes"]
            claims = [v["name"] for v in volumes if "persistentVolumeClaim" in v]
            mounts = {m["name"]: m["mountPath"] for m in container_of(template)["volumeMounts"]}
            (shared,) = [mounts[claim] for claim in claims]
            assert given["--runs"].startswith(f"{shared}/")
            assert given["--data.root"].startswith(f"{shared}/")


services = pytest.mark.parametrize(
    ("name", "file"),
    [("service", SERVICE), ("service + vllm", SERVICE.replace(".yaml", "_vllm.yaml"))],
)


@services
def test_the_service_is_that_of_the_configs(name: str, file: str) -> None:
    """Where this fails, put the file's text under `serveConfigV2` of rayservice.yaml."""
    text = (ROOT / file).read_text(encoding="utf-8")
    assert resource(name)["spec"]["serveConfigV2"] == text


@services
def test_the_service_finds_its_keys_wherever_ray_builds_it(name: str, file: str) -> None:
    (application,) = config_of(file)["applications"]
    keys = Path(application["args"]["auth"]["keys_file"])
    for _, template in pods(name):
        secrets = {v["name"]: v["secret"] for v in template["spec"]["volumes"] if "secret" in v}
        (mount,) = [m for m in container_of(template)["volumeMounts"] if m["name"] in secrets]
        assert (mount["mountPath"], mount["readOnly"]) == (str(keys.parent), True)
        # The group reads it, which is the container's by fsGroup.
        assert secrets[mount["name"]] == {"secretName": "cmoe-api-keys", "defaultMode": 0o440}
    assert f"secret generic cmoe-api-keys --from-file={keys.name}" in text_of("README.md")


@services
def test_the_services_machines_are_enough_for_all_its_replicas(name: str, file: str) -> None:
    config = config_of(file)
    deployments = config["applications"][0]["deployments"]
    (group,) = cluster_of(name)["workerGroupSpecs"]
    container = container_of(group["template"])
    for asked, limit in (("num_gpus", "nvidia.com/gpu"), ("num_cpus", "cpu")):
        needed = sum(
            each["autoscaling_config"]["max_replicas"] * each["ray_actor_options"].get(asked, 0)
            for each in deployments
        )
        assert needed <= group["maxReplicas"] * container["resources"]["limits"][limit]
    longest = max(each.get("graceful_shutdown_timeout_s", 0) for each in deployments)
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > longest
    port = config["http_options"]["port"]
    assert container["ports"] == [{"name": "serve", "containerPort": port}]


def test_executors_by_vllm_find_its_python_in_their_image() -> None:
    """And only where the image has it: the head's has not."""
    (application,) = config_of(SERVICE.replace(".yaml", "_vllm.yaml"))["applications"]
    (executor,) = [each for each in application["deployments"] if each["name"] == "executor"]
    python = executor["ray_actor_options"]["runtime_env"]["py_executable"]
    assert f"COPY --from=build {Path(python).parents[1]} " in text_of("Containerfile.vllm")
    images = {part: container_of(template)["image"] for part, template in pods("service + vllm")}
    assert images["gpu-on-demand"].endswith("YOUR-VLLM-DIGEST")
    assert images["head"].endswith("YOUR-DIGEST")


def test_the_service_is_upgraded_bit_by_bit() -> None:
    """What the operator itself refuses, beside its schema."""
    spec = resource("service")["spec"]
    assert spec["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    options = spec["upgradeStrategy"]["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    assert options["intervalSeconds"] > 0
    assert options["gatewayClassName"]
    assert spec["rayClusterConfig"]["enableInTreeAutoscaling"] is True
    # A group's own least would be there twice while two clusters are.
    assert [g["minReplicas"] for g in spec["rayClusterConfig"]["workerGroupSpecs"]] == [0]


def test_the_operator_waits_longer_than_a_head_may_be_away() -> None:
    """A RayJob whose status can't be asked for so long ends, and no `backoffLimit` retries it.

    KubeRay 1.7.0, rayjob_controller.go: `JobStatusCheckTimeoutExceeded` isn't eligible for retry,
    and comes after RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS, 300 by default. Kubernetes itself lets a
    pod stay on a machine that doesn't answer for as long (DefaultTolerationSeconds).
    """
    text = text_of("README.md")
    (name,) = re.findall(r"'env\[0\]\.name=(\w+)'", text)
    (value,) = re.findall(r"--set-string 'env\[0\]\.value=(\d+)'", text)
    assert name == "RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS"
    for file in ("cluster", *JOBS):
        spec = dict(pods(file))["head"]["spec"]
        for gone in ("not-ready", "unreachable"):
            key = f"node.kubernetes.io/{gone}"
            (seconds,) = [
                each["tolerationSeconds"] for each in spec["tolerations"] if each["key"] == key
            ]
            assert seconds < 300
            assert int(value) > seconds + MACHINE_S
    assert "JobStatusCheckTimeoutExceeded" in text
    assert "covers losing the head" not in text


KEPT = re.compile(r"[A-Z_]*(?:KEY|SECRET|TOKEN|PASSWORD)[A-Z_]*")


@pytest.mark.parametrize("page", ["docs/cluster.md", "SECURITY.md", "cluster/README.md"])
def test_no_command_has_a_key_in_a_runtime_environment(page: str) -> None:
    """Ray shows it in clear: in /api/jobs, in the dashboard, in its logs."""
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = re.findall(r'"env_vars":\s*{([^}]*)}', text)
    assert [each for each in shown if KEPT.search(each)] == []
    assert "in clear" in text
    for file in JOBS:
        assert not KEPT.search(resource(file)["spec"].get("runtimeEnvYAML", ""))
