"""The cluster files, as their tests read them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import yaml
from support.paths import ROOT

CLUSTER = ROOT / "cluster"
STREAM, SERVICE = "configs/coin_llava_7b.yaml", "configs/serve_llava_7b.yaml"

FILES = sorted(path.name for path in CLUSTER.iterdir() if path.is_file())
MANIFESTS = [name for name in FILES if name.endswith(".yaml") and name != "aws.yaml"]
JOBS = ["rayjob-stream.yaml", "rayjob-sweep.yaml"]
KUBERAY = ["raycluster.yaml", *JOBS, "rayservice.yaml"]
KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}

Stage = list[tuple[str, str]]


def text_of(name: str) -> str:
    return (CLUSTER / name).read_text(encoding="utf-8")


def launcher() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text_of("aws.yaml"))
    return found


def documents(name: str) -> list[dict[str, Any]]:
    """What a manifest has. By way of JSON, as it is sent: parts by one anchor are copies then."""
    return [json.loads(json.dumps(each)) for each in yaml.load_all(text_of(name), yaml.CSafeLoader)]


def resource(name: str) -> dict[str, Any]:
    """The one custom resource of a manifest."""
    (found,) = [each for each in documents(name) if each["kind"] in KINDS]
    return found


def cluster_in(document: dict[str, Any]) -> dict[str, Any]:
    """The RayClusterSpec of a resource, whichever it is."""
    spec: dict[str, Any] = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def cluster_of(name: str) -> dict[str, Any]:
    return cluster_in(resource(name))


def pods(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of a manifest, by its part."""
    cluster = cluster_of(name)
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if submitter := resource(name)["spec"].get("submitterPodTemplate"):
        yield "submitter", submitter


def container_of(template: dict[str, Any]) -> dict[str, Any]:
    """The one container of a pod template."""
    (found,) = template["spec"]["containers"]
    return found


def flags(name: str) -> dict[str, str]:
    """What a job's entry point is given."""
    words = shlex.split(resource(name)["spec"]["entrypoint"])
    assert words[0] == "python"
    assert all(word.startswith("--") for word in words[2::2])
    return dict(zip(words[2::2], words[3::2], strict=True))


def gibibytes(quantity: str) -> float:
    assert quantity.endswith("Gi")
    return float(quantity[:-2])


@lru_cache
def machine(kind: str) -> tuple[int, float, int]:
    """CPUs, GiB of memory and GPUs of an EC2 instance type, as moto has copied them from EC2."""
    import boto3
    from moto import mock_aws

    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        ec2 = boto3.client("ec2", region_name="us-west-2")
        (found,) = ec2.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
    gpus = sum(gpu["Count"] for gpu in found.get("GpuInfo", {}).get("Gpus", []))
    return found["VCpuInfo"]["DefaultVCpus"], found["MemoryInfo"]["SizeInMiB"] / 2**10, gpus


def stages(text: str) -> list[Stage]:
    """A container file's instructions: what stands before the first FROM, then each stage."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found: list[Stage] = [[]]
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            if word == "FROM":
                found.append([])
            found[-1].append((word, rest.strip()))
    return found


def said(stage: Stage, word: str) -> list[str]:
    """All that a stage says by one instruction."""
    return [rest for each, rest in stage if each == word]


def environment(stage: Stage) -> dict[str, str]:
    pairs = [pair for rest in said(stage, "ENV") for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def copied(stage: Stage) -> list[str]:
    """What a stage takes from the repository."""
    lists = [rest.split() for rest in said(stage, "COPY") if not rest.startswith("--from")]
    return [source for words in lists for source in words[:-1]]


BEFORE, BUILD, IMAGE = stages(text_of("Containerfile"))
UID, GID = map(int, said(IMAGE, "USER")[-1].split(":"))
