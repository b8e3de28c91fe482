"""The network policies, taken at their word: who reaches which port of Ray's pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.cluster_files import JOBS, RENDERED, cluster_of, documents, pods


@dataclass(frozen=True)
class Pod:
    """A pod as a policy sees it."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "cmoe"
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


CLEANUP = Pod({"ray.io/is-ray-node": "yes", "ray.io/node-type": "redis-cleanup"})
REDIS = Pod({"app.kubernetes.io/name": "cmoe-redis"})
HEAD = Pod({"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"})
WORKER = Pod({"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"})
SUBMITTER = Pod({"app.kubernetes.io/component": "ray-submitter"})
GATEWAY = Pod({"gateway.networking.k8s.io/gateway-name": "cmoe-gateway"})
OPERATOR = Pod({"app.kubernetes.io/name": "kuberay-operator"}, "kuberay-system")
CLIENT = Pod({}, "web", {"cmoe-clients": "allowed"})
NEIGHBOUR = Pod()
STRANGERS = [
    Pod({}, "web"),
    Pod({}, "kuberay-system"),
    Pod({**WORKER.labels, **SUBMITTER.labels, **GATEWAY.labels, **OPERATOR.labels}, "web"),
]
# GCS, Serve, objects, metrics, dashboard and jobs, Ray Client, the dashboard's agent, a worker.
PORTS = (6379, 8000, 8076, 8080, 8265, 10001, 52365, 31234)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    equal = selector.get("matchLabels", {}).items()
    return all(labels.get(k) == v for k, v in equal) and all(
        labels.get(each["key"]) in each["values"]
        if each["operator"] == "In"
        # No other operator is known here.
        else {"Exists": each["key"] in labels}[each["operator"]]
        for each in selector.get("matchExpressions", [])
    )


def admits(peer: Mapping[str, Any], source: Pod, target: Pod) -> bool:
    assert peer
    assert set(peer) <= {"podSelector", "namespaceSelector"}
    if (namespaces := peer.get("namespaceSelector")) is None:
        inside = source.namespace == target.namespace
    else:
        name = {"kubernetes.io/metadata.name": source.namespace}
        inside = selects(namespaces, {**source.namespace_labels, **name})
    return inside and selects(peer.get("podSelector", {}), source.labels)


def allowed(source: Pod, target: Pod, port: int) -> bool:
    """As Kubernetes defines it: who is selected by a policy is closed but for what any lets in."""
    specs = [each["spec"] for each in documents("service") if each["kind"] == "NetworkPolicy"]
    policies = [spec for spec in specs if selects(spec["podSelector"], target.labels)]
    assert all(policy["policyTypes"] == ["Ingress"] for policy in policies)
    return not policies or any(
        any(admits(peer, source, target) for peer in rule["from"])
        and ("ports" not in rule or port in [each["port"] for each in rule["ports"]])
        for policy in policies
        for rule in policy["ingress"]
    )


@pytest.mark.parametrize(
    ("source", "to_head", "to_worker", "to_redis"),
    [
        pytest.param(HEAD, PORTS, PORTS, (6379,), id="head"),
        pytest.param(WORKER, PORTS, PORTS, (), id="worker"),
        pytest.param(CLEANUP, PORTS, PORTS, (6379,), id="redis-cleanup"),
        pytest.param(OPERATOR, (8000, 8265), (), (), id="operator"),
        pytest.param(SUBMITTER, (8265,), (), (), id="submitter"),
        pytest.param(GATEWAY, (8000,), (8000,), (), id="gateway"),
        pytest.param(CLIENT, (8000,), (8000,), (), id="client"),
        pytest.param(NEIGHBOUR, (), (), (), id="neighbour"),
        *[pytest.param(stranger, (), (), (), id="stranger") for stranger in STRANGERS],
    ],
)
def test_the_policies_let_in_only_who_needs_it(
    source: Pod, to_head: tuple[int, ...], to_worker: tuple[int, ...], to_redis: tuple[int, ...]
) -> None:
    assert tuple(port for port in PORTS if allowed(source, HEAD, port)) == to_head
    assert tuple(port for port in PORTS if allowed(source, WORKER, port)) == to_worker
    assert tuple(port for port in PORTS if allowed(source, REDIS, port)) == to_redis


def test_a_policy_selects_nobody_but_rays_pods_and_redis() -> None:
    """The gateway's pods live in the namespace, too, and are to be reached."""
    assert allowed(STRANGERS[0], GATEWAY, 80)


@pytest.mark.parametrize("name", RENDERED)
def test_every_overlay_has_the_policies_of_rays_pods(name: str) -> None:
    found = {e["metadata"]["name"]: e for e in documents(name) if e["kind"] == "NetworkPolicy"}
    whole = {e["metadata"]["name"]: e for e in documents("service") if e["kind"] == "NetworkPolicy"}
    assert {"ray-pods", "ray-heads"} <= set(found)
    assert all(found[each] == whole[each] for each in found)
    assert ("redis" in found) == ("gcsFaultToleranceOptions" in cluster_of(name))


def test_the_pods_of_redis_are_those_that_its_policy_and_its_service_select() -> None:
    kept = {(each["kind"], each["metadata"]["name"]): each for each in documents("service")}
    labels = kept["StatefulSet", "cmoe-redis"]["spec"]["template"]["metadata"]["labels"]
    assert labels == REDIS.labels
    service = kept["Service", "cmoe-redis"]["spec"]
    assert service["selector"] == REDIS.labels
    assert [port["port"] for port in service["ports"]] == [6379]


@pytest.mark.parametrize("name", JOBS)
def test_the_pod_that_submits_a_job_has_the_label_that_is_let_in(name: str) -> None:
    assert dict(pods(name))["submitter"]["metadata"]["labels"] == SUBMITTER.labels
