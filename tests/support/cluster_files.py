"""The cluster files, as their tests read them.

Kubernetes' are read as kubectl renders them: an overlay by its name, and an overlay with components
more or less as "service + vllm" or "eight-gpus - spot".
"""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT

CLUSTER = ROOT / "cluster"
STREAM, SERVICE = "configs/coin_llava_7b.yaml", "configs/serve_llava_7b.yaml"

FILES = sorted(str(p.relative_to(CLUSTER)) for p in CLUSTER.rglob("*") if p.is_file())
OVERLAYS = sorted(path.name for path in (CLUSTER / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (CLUSTER / "components").iterdir())
STREAMS = ["eight-gpus", "one-gpu"]
JOBS = [*STREAMS, "sweep"]
SERVICES = ["service", "service + vllm + shared-cache + pre-pull"]
RENDERED = [
    *(each for each in OVERLAYS if each != "service"),
    *SERVICES,
    "eight-gpus + redis + shared-cache + pre-pull",
    "eight-gpus - spot + gpu-operator",
    "one-gpu + shared-cache",
    "cluster + redis",
]
MACHINE_S = 900  # in which a new machine is there, and has the image
KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}

Stage = list[tuple[str, str]]


def text_of(name: str) -> str:
    return (CLUSTER / name).read_text(encoding="utf-8")


def config_of(file: str) -> dict[str, Any]:
    """What a file of `configs/` says."""
    found: dict[str, Any] = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return found


def launcher() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text_of("aws.yaml"))
    return found


def kubectl() -> str | None:
    """The program: the environment's own, which the extra `dev` installs, or the machine's."""
    own = Path(sys.executable).parent
    return shutil.which("kubectl", path=f"{own}{os.pathsep}{os.environ.get('PATH', '')}")


@lru_cache
def _rendered(name: str) -> list[dict[str, Any]]:
    if (program := kubectl()) is None:
        pytest.skip("no kubectl: `make install` has it on Linux; elsewhere install it yourself")
    overlay, *changes = name.replace(" - ", " + -").split(" + ")
    with tempfile.TemporaryDirectory() as folder:
        tree = shutil.copytree(CLUSTER, Path(folder) / "cluster")
        file = tree / "overlays" / overlay / "kustomization.yaml"
        made = yaml.safe_load(file.read_text(encoding="utf-8"))
        start = int("../../components/stream" in made["components"])
        for change in changes:  # after the stream and before the others, as README.md says
            path = f"../../components/{change.removeprefix('-')}"
            if change.startswith("-"):
                made["components"].remove(path)
            else:
                made["components"].insert(start, path)
        file.write_text(yaml.safe_dump(made), encoding="utf-8")
        done = subprocess.run(
            [program, "kustomize", file.parent], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # warnings of what a later version refuses
    return [json.loads(json.dumps(each)) for each in yaml.safe_load_all(done.stdout)]


def documents(name: str) -> list[dict[str, Any]]:
    """All that an overlay renders to: what the API server is sent."""
    return copy.deepcopy(_rendered(name))


def resource(name: str) -> dict[str, Any]:
    """The one resource of KubeRay's."""
    (found,) = [each for each in documents(name) if each["kind"] in KINDS]
    return found


def cluster_in(document: dict[str, Any]) -> dict[str, Any]:
    """The RayClusterSpec of a resource, whichever it is."""
    spec: dict[str, Any] = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def cluster_of(name: str) -> dict[str, Any]:
    return cluster_in(resource(name))


def pods(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of Ray's, by its part."""
    cluster = cluster_of(name)
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if submitter := resource(name)["spec"].get("submitterPodTemplate"):
        yield "submitter", submitter


def plain_pods(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every other pod template, by its resource's name."""
    for document in documents(name):
        if document["kind"] in ("StatefulSet", "DaemonSet", "Job"):
            yield document["metadata"]["name"], document["spec"]["template"]


def container_of(template: dict[str, Any]) -> dict[str, Any]:
    """The one container of a pod template."""
    (found,) = template["spec"]["containers"]
    return found


def without(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key}


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
