"""KubeRay's resources: its schemas take them, they agree, and nothing of them is open or root."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest
import yaml
from support.cluster_files import (
    GID,
    KINDS,
    RENDERED,
    ROOT,
    UID,
    cluster_in,
    cluster_of,
    container_of,
    documents,
    gibibytes,
    launcher,
    machine,
    plain_pods,
    pods,
    resource,
    without,
)

CRDS = next(ROOT.parent.glob("*/kuberay-crds"), None)
every_file = pytest.mark.parametrize("name", RENDERED)


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """The schema of each kind, as KubeRay's CRDs have it."""
    if CRDS is None:
        pytest.skip("no folder kuberay-crds beside the repository")
    found = {}
    for kind, file in KINDS.items():
        crd = yaml.load((CRDS / f"{file}.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
        (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
        found[kind] = version["schema"]["openAPIV3Schema"]
    return found


def unknown_fields(value: Any, schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Fields that a schema doesn't name: the API server drops them, without a word."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield from unknown_fields(each, schema.get("items", {}), f"{path}[{index}]")
    elif isinstance(value, dict):
        named, more = schema.get("properties", {}), schema.get("additionalProperties")
        for key, each in value.items():
            if key in named:
                yield from unknown_fields(each, named[key], f"{path}.{key}")
            elif isinstance(more, dict):
                yield from unknown_fields(each, more, f"{path}.{key}")
            elif not more:
                yield f"{path}.{key}"


@every_file
def test_the_schemas_take_the_resources(name: str, schemas: dict[str, Any]) -> None:
    document = resource(name)
    assert document["apiVersion"] == "ray.io/v1"
    schema = schemas[document["kind"]]
    jsonschema.validate(document, schema, jsonschema.Draft7Validator)
    # A resource's own metadata is Kubernetes' part: no schema says anything of it.
    assert list(unknown_fields(without(document, "metadata"), schema)) == []


@every_file
def test_a_field_that_would_be_dropped_is_found(name: str, schemas: dict[str, Any]) -> None:
    document = resource(name)
    schema = schemas[document["kind"]]
    head = container_of(cluster_in(document)["headGroupSpec"]["template"])
    head["securityContext"]["runAsNonroot"] = True
    (found,) = unknown_fields(without(document, "metadata"), schema)
    assert found.endswith("headGroupSpec.template.spec.containers[0].securityContext.runAsNonroot")
    # To the schema it is no error, which is why it has to be looked for.
    jsonschema.validate(document, schema, jsonschema.Draft7Validator)


def test_only_the_open_parts_of_a_schema_take_any_field() -> None:
    schema = {
        "properties": {
            "closed": {"properties": {"a": {"type": "integer"}}},
            "empty": {"type": "object"},
            "open": {"x-kubernetes-preserve-unknown-fields": True},
            "map": {"additionalProperties": {"properties": {"a": {}}}},
            "list": {"items": {"properties": {"a": {}}}},
        }
    }
    value = {
        "closed": {"a": 1, "b": 2},
        "empty": {"c": 1},
        "open": {"d": {"e": 1}},
        "map": {"any": {"a": 1, "f": 2}},
        "list": [{"a": 1}, {"g": 2}],
        "h": None,
    }
    found = list(unknown_fields(value, schema))
    assert found == [".closed.b", ".empty.c", ".map.any.f", ".list[1].g", ".h"]


@every_file
def test_rays_own_autoscaler_reads_the_groups(name: str) -> None:
    """As its container in the head's pod does."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    derive = autoscaling_config._derive_autoscaling_config_from_ray_cr
    made = derive({"metadata": resource(name)["metadata"], "spec": cluster_of(name)})
    types = made["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    for group in cluster_of(name)["workerGroupSpecs"]:
        seen, limits = types[group["groupName"]], container_of(group["template"])["resources"]
        assert seen["resources"]["CPU"] == limits["limits"]["cpu"]
        assert seen["resources"].get("GPU", 0) == limits["limits"].get("nvidia.com/gpu", 0)
        assert (seen["min_workers"], seen["max_workers"]) == (0, group["maxReplicas"])
        assert seen.get("priority", 0) == group.get("priority", 0)
    assert made["idle_timeout_minutes"] == 10


def test_the_streams_cluster_is_the_one_that_stays() -> None:
    assert cluster_of("eight-gpus") == cluster_of("cluster")


@every_file
def test_the_resources_agree_in_what_they_share(name: str) -> None:
    first, cluster = cluster_of("cluster"), cluster_of(name)
    for key in ("rayVersion", "authOptions", "autoscalerOptions", "enableInTreeAutoscaling"):
        assert cluster[key] == first[key]
    lead = first["headGroupSpec"]["template"]
    head = container_of(cluster["headGroupSpec"]["template"])
    assert without(head, "volumeMounts") == without(container_of(lead), "volumeMounts")
    for _, template in pods(name):
        container = container_of(template)
        assert container["securityContext"] == container_of(lead)["securityContext"]
        assert template["spec"]["securityContext"] == lead["spec"]["securityContext"]


@every_file
def test_images_are_ours_by_their_digests(name: str) -> None:
    """With vLLM the workers' alone is another; what isn't Ray's may be Redis'."""
    ours = launcher()["docker"]["image"].rpartition(":")[0]
    usual, other = f"{ours}@sha256:YOUR-DIGEST", f"{ours}@sha256:YOUR-VLLM-DIGEST"
    for part, template in pods(name):
        working = part not in ("head", "submitter")
        assert container_of(template)["image"] == (other if "vllm" in name and working else usual)
    for _, template in plain_pods(name):
        spec = template["spec"]
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            redis = "docker.io/library/redis@sha256:YOUR-REDIS-DIGEST"
            assert container["image"] in (usual, other, redis)


@every_file
def test_no_container_is_root_or_gains_privileges(name: str) -> None:
    """Ours, and the autoscaler's, which KubeRay adds; its init containers copy ours."""
    contexts = [cluster_of(name)["autoscalerOptions"]["securityContext"]]
    for _, template in pods(name):
        assert "initContainers" not in template["spec"]
        contexts.append(container_of(template)["securityContext"])
    for _, template in plain_pods(name):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            contexts.append(without(container["securityContext"], "readOnlyRootFilesystem"))
    for _, template in [*pods(name), *plain_pods(name)]:
        spec = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": GID,
            "fsGroup": GID,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    for context in contexts:
        assert context == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        }


@every_file
def test_every_cluster_asks_for_the_token(name: str) -> None:
    assert cluster_of(name)["authOptions"] == {"mode": "token", "secretName": "cmoe-ray-token"}
    for _, template in pods(name):
        # KubeRay sets RAY_AUTH_MODE and RAY_AUTH_TOKEN, but not over what is there.
        variables = [each["name"] for each in container_of(template).get("env", [])]
        assert not [variable for variable in variables if variable.startswith("RAY_AUTH")]


@every_file
def test_the_dashboard_is_served_to_nobody(name: str) -> None:
    head = cluster_of(name)["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert not {"enableIngress", "headService", "ingressOptions"} & set(head)
    assert "serveService" not in resource(name)["spec"]


@every_file
def test_every_overlay_keeps_to_its_namespace_and_opens_none_of_it(name: str) -> None:
    for document in documents(name):
        metadata = document["metadata"]
        place = metadata["name"] if document["kind"] == "Namespace" else metadata["namespace"]
        assert place == "cmoe"
        assert document["kind"] not in ("Ingress", "Gateway", "HTTPRoute", "Secret")
        if document["kind"] == "Service":  # Redis', for heads alone
            assert (metadata["name"], document["spec"]["type"]) == ("cmoe-redis", "ClusterIP")


@every_file
def test_accounts_and_claims_are_there(name: str) -> None:
    kept = {(each["kind"], each["metadata"]["name"]): each for each in documents(name)}
    for part, template in pods(name):
        spec = template["spec"]
        # Only the head's autoscaler speaks to the Kubernetes API; a submitter to the head alone.
        assert spec.get("automountServiceAccountToken", True) is (part == "head")
        if part == "submitter":
            assert "serviceAccountName" not in spec
            continue
        assert spec["serviceAccountName"] == ("cmoe-head" if part == "head" else "cmoe-worker")
        account = kept["ServiceAccount", spec["serviceAccountName"]]
        assert account.get("automountServiceAccountToken", True) is (part == "head")
        assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
        for volume in spec["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                shared = kept["PersistentVolumeClaim", claim["claimName"]]
                assert shared["spec"]["accessModes"] == ["ReadWriteMany"]


@every_file
def test_pods_are_where_their_part_belongs(name: str) -> None:
    """A head never on a machine that the spot market takes away; nothing on one being emptied."""
    operated = "gpu-operator" in name or name.startswith("one-gpu")
    for part, template in pods(name):
        spec = template["spec"]
        if part == "submitter":
            continue
        assert template["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
        spot = part.endswith("-spot")
        selected = spec.get("nodeSelector", {})
        gpus = "nvidia.com/gpu" in container_of(template)["resources"]["limits"]
        if operated:
            assert selected == ({"nvidia.com/gpu.present": "true"} if gpus else {})
        else:
            assert selected["karpenter.sh/capacity-type"] == ("spot" if spot else "on-demand")
        assert ("affinity" in spec) == (operated and gpus)
        tolerated = {each["key"] for each in spec.get("tolerations", [])}
        assert ("spot" in tolerated, "nvidia.com/gpu" in tolerated) == (spot, gpus)
        if part != "head":
            assert spec["terminationGracePeriodSeconds"] > 30  # Kubernetes' default


@every_file
def test_containers_fit_their_machines(name: str) -> None:
    for part, template in pods(name):
        spec, container = template["spec"], container_of(template)
        limits = container["resources"]["limits"]
        assert container["resources"]["requests"] == limits
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
        assert set(mounts) == set(volumes)
        if part == "submitter":
            continue
        assert mounts["shared-mem"] == "/dev/shm"
        shared = volumes["shared-mem"]["emptyDir"]
        assert shared["medium"] == "Memory"
        assert gibibytes(shared["sizeLimit"]) < gibibytes(limits["memory"]) / 2
        if cache := volumes["cache"].get("emptyDir"):
            assert gibibytes(cache["sizeLimit"]) < gibibytes(limits["ephemeral-storage"])
        if kind := spec.get("nodeSelector", {}).get("node.kubernetes.io/instance-type"):
            cpus, memory, gpus = machine(kind)
            assert limits["nvidia.com/gpu"] == gpus
            assert limits["cpu"] < cpus
            assert gibibytes(limits["memory"]) < 0.9 * memory


@every_file
def test_probes_and_restarts_are_left_to_kuberay(name: str) -> None:
    """Its probes ask Ray; and with the second autoscaler it lets no pod be restarted.

    But the service's workers are ready by their proxy alone, head or no head.
    """
    for part, template in pods(name):
        container = container_of(template)
        serving = name.startswith("service") and part != "head"
        probes = [key for key in container if key.endswith("Probe")]
        assert probes == (["readinessProbe"] if serving else [])
        if serving:
            asked = container["readinessProbe"]["httpGet"]
            assert asked == {"path": "/-/healthz", "port": container["ports"][0]["name"]}
        if part != "submitter":
            assert "restartPolicy" not in template["spec"]
