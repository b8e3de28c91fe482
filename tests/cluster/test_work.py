"""What the clusters are for: the stream, the sweep and the service find all that they need."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cluster_files import (
    IMAGE,
    JOBS,
    ROOT,
    SERVICE,
    STREAM,
    cluster_of,
    container_of,
    copied,
    flags,
    launcher,
    pods,
    resource,
    text_of,
)

MACHINE_S = 900  # in which a new machine is there, and has the image

Groups = list[tuple[str, int, int, int]]


def config_of(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return found


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


def test_the_stream_keeps_all_of_it_in_the_bucket() -> None:
    given = flags("rayjob-stream.yaml")
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


def on_kubernetes() -> Groups:
    groups = cluster_of("rayjob-stream.yaml")["workerGroupSpecs"]
    limits = [container_of(group["template"])["resources"]["limits"] for group in groups]
    return [
        (group["groupName"], group["maxReplicas"], limit["cpu"], limit["nvidia.com/gpu"])
        for group, limit in zip(groups, limits, strict=True)
    ]


@pytest.mark.parametrize("groups", [on_aws, on_kubernetes])
def test_the_stream_goes_on_when_the_spot_machines_go(groups: Any) -> None:
    """And has all its workers where there are only spot machines."""
    given, each = flags("rayjob-stream.yaml"), config_of(STREAM)["cluster"]["cpus_per_worker"]
    workers = {name: count * min(gpus, cpus // each) for name, count, cpus, gpus in groups()}
    (on_demand,) = [count for name, count in workers.items() if not name.endswith("spot")]
    assert on_demand >= int(given["--cluster.min_workers"])
    assert sum(workers.values()) - on_demand >= int(given["--cluster.workers"])


def test_the_sweep_keeps_all_of_it_on_the_shared_disk() -> None:
    given = flags("rayjob-sweep.yaml")
    for part, template in pods("rayjob-sweep.yaml"):
        if part != "submitter":
            claims = [v["name"] for v in template["spec"]["volumes"] if "emptyDir" not in v]
            mounts = {m["name"]: m["mountPath"] for m in container_of(template)["volumeMounts"]}
            (shared,) = [mounts[claim] for claim in claims]
            assert given["--runs"].startswith(f"{shared}/")
            assert given["--data.root"].startswith(f"{shared}/")


def test_the_service_is_that_of_the_configs() -> None:
    """Where this fails, put the file's text under `serveConfigV2` of rayservice.yaml."""
    text = (ROOT / SERVICE).read_text(encoding="utf-8")
    assert resource("rayservice.yaml")["spec"]["serveConfigV2"] == text


def test_the_service_finds_its_keys_wherever_ray_builds_it() -> None:
    (application,) = config_of(SERVICE)["applications"]
    keys = Path(application["args"]["auth"]["keys_file"])
    for _, template in pods("rayservice.yaml"):
        secrets = {v["name"]: v["secret"] for v in template["spec"]["volumes"] if "secret" in v}
        (mount,) = [m for m in container_of(template)["volumeMounts"] if m["name"] in secrets]
        assert (mount["mountPath"], mount["readOnly"]) == (str(keys.parent), True)
        # The group reads it, which is the container's by fsGroup.
        assert secrets[mount["name"]] == {"secretName": "cmoe-api-keys", "defaultMode": 0o440}
    assert f"secret generic cmoe-api-keys --from-file={keys.name}" in text_of("README.md")


def test_the_services_machines_are_enough_for_all_its_replicas() -> None:
    config = config_of(SERVICE)
    deployments = config["applications"][0]["deployments"]
    (group,) = cluster_of("rayservice.yaml")["workerGroupSpecs"]
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


def test_the_service_is_upgraded_bit_by_bit() -> None:
    """What the operator itself refuses, beside its schema."""
    spec = resource("rayservice.yaml")["spec"]
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
    for file in ("raycluster.yaml", *JOBS):
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
