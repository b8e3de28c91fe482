"""The network policies, taken at their word: who reaches which port of Ray's pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.cluster_files import JOBS, documents, pods


@dataclass(frozen=True)
class Pod:
    """A pod as a policy sees it."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "cmoe"
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


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
    present = selector.get("matchExpressions", [])
    assert all(each["operator"] == "Exists" for each in present)
    equal = selector.get("matchLabels", {}).items()
    return all(labels.get(k) == v for k, v in equal) and all(e["key"] in labels for e in present)


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
    specs = [each["spec"] for each in documents("network-policy.yaml")]
    policies = [spec for spec in specs if selects(spec["podSelector"], target.labels)]
    assert all(policy["policyTypes"] == ["Ingress"] for policy in policies)
    return not policies or any(
        any(admits(peer, source, target) for peer in rule["from"])
        and ("ports" not in rule or port in [each["port"] for each in rule["ports"]])
        for policy in policies
        for rule in policy["ingress"]
    )


@pytest.mark.parametrize(
    ("source", "to_head", "to_worker"),
    [
        pytest.param(HEAD, PORTS, PORTS, id="head"),
        pytest.param(WORKER, PORTS, PORTS, id="worker"),
        pytest.param(OPERATOR, (8000, 8265), (), id="operator"),
        pytest.param(SUBMITTER, (8265,), (), id="submitter"),
        pytest.param(GATEWAY, (8000,), (8000,), id="gateway"),
        pytest.param(CLIENT, (8000,), (8000,), id="client"),
        pytest.param(NEIGHBOUR, (), (), id="neighbour"),
        *[pytest.param(stranger, (), (), id="stranger") for stranger in STRANGERS],
    ],
)
def test_the_policies_let_in_only_who_needs_it(
    source: Pod, to_head: tuple[int, ...], to_worker: tuple[int, ...]
) -> None:
    assert tuple(port for port in PORTS if allowed(source, HEAD, port)) == to_head
    assert tuple(port for port in PORTS if allowed(source, WORKER, port)) == to_worker


def test_a_policy_selects_nobody_but_rays_pods() -> None:
    """The gateway's pods live in the namespace, too, and are to be reached."""
    assert allowed(STRANGERS[0], GATEWAY, 80)


@pytest.mark.parametrize("name", JOBS)
def test_the_pod_that_submits_a_job_has_the_label_that_is_let_in(name: str) -> None:
    assert dict(pods(name))["submitter"]["metadata"]["labels"] == SUBMITTER.labels
