"""What overlays render to: Kubernetes' own schemas take it, and all of it comes from one place."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from support.cluster_files import (
    CLUSTER,
    COMPONENTS,
    KINDS,
    OVERLAYS,
    RENDERED,
    container_of,
    documents,
    kubectl,
    pods,
    resource,
    text_of,
)

# The oldest and the newest that the file's fields are looked up in.
KUBERNETES = ("1.32", "1.37")

core = pytest.mark.parametrize("name", RENDERED)


def core_documents(name: str) -> list[dict[str, Any]]:
    return [each for each in documents(name) if each["kind"] not in KINDS]


@core
@pytest.mark.parametrize("version", KUBERNETES)
def test_the_schemas_of_kubernetes_take_all_that_is_its_own(name: str, version: str) -> None:
    """Unknown fields are errors, which the API server would drop."""
    from kubernetes_validate import validate

    found = core_documents(name)
    kinds = {document["kind"] for document in found}
    assert {"Namespace", "ServiceAccount", "NetworkPolicy"} <= kinds
    for document in found:
        assert validate(document, version, strict=True) == version


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("StatefulSet", ("spec", "template", "spec"), {"terminationGraceSeconds": 1}),
        ("NetworkPolicy", ("spec",), {"policyTypes": "Ingress"}),
        ("Job", ("spec", "template", "spec"), {"restartPolicies": "Never"}),
        ("DaemonSet", ("spec", "updateStrategy"), {"maxUnavailable": 1}),
    ],
)
def test_a_field_that_kubernetes_does_not_know_is_found(
    kind: str, path: tuple[str, ...], wrong: dict[str, Any]
) -> None:
    from kubernetes_validate import ValidationError, validate

    whole = core_documents("service + vllm + shared-cache + pre-pull")
    document = next(each for each in whole if each["kind"] == kind)
    part = document
    for key in path:
        part = part[key]
    part.update(wrong)
    with pytest.raises(ValidationError):
        validate(document, KUBERNETES[-1], strict=True)


def test_every_overlay_and_component_is_rendered_here() -> None:
    words = {word for name in RENDERED for word in re.split(r" [+-] ", name)}
    listed = {
        path.rpartition("/")[2]
        for overlay in OVERLAYS
        for path in yaml.safe_load(text_of(f"overlays/{overlay}/kustomization.yaml"))["components"]
    }
    assert words | listed == {*OVERLAYS, *COMPONENTS}


@core
def test_one_resource_of_rays_comes_out_and_not_the_template(name: str) -> None:
    kind = {"service": "RayService", "cluster": "RayCluster"}.get(name.split(" ")[0], "RayJob")
    assert resource(name)["kind"] == kind
    assert "config.kubernetes.io/local-config" not in resource(name)["metadata"].get(
        "annotations", {}
    )


@core
def test_what_two_overlays_share_is_the_same_in_both(name: str) -> None:
    """They may be applied side by side: neither changes what the other needs."""
    first = {(e["kind"], e["metadata"]["name"]): e for e in core_documents("service")}
    for document in core_documents(name):
        known = first.get((document["kind"], document["metadata"]["name"]), document)
        assert document == known


@pytest.mark.parametrize(
    ("label", "kinds"),
    [
        ("cmoe-pre-pull", {"DaemonSet"}),
        ("cmoe-cache", {"PersistentVolumeClaim", "Job"}),
    ],
)
def test_what_comes_first_is_applied_alone_by_its_label(label: str, kinds: set[str]) -> None:
    named = {"app.kubernetes.io/name": label}
    whole = documents("eight-gpus + redis + shared-cache + pre-pull")
    found = {e["kind"] for e in whole if e["metadata"].get("labels", {}).items() >= named.items()}
    assert found == kinds
    assert f"-l app.kubernetes.io/name={label}" in text_of("README.md")


def test_what_a_group_from_the_spot_market_differs_in() -> None:
    (_, head), (_, owned), (_, spot), (_, _) = pods("eight-gpus + redis + shared-cache + pre-pull")
    assert container_of(spot) == container_of(owned)
    assert spot["spec"]["volumes"] == owned["spec"]["volumes"]
    assert container_of(head)["env"] == container_of(owned)["env"][:-1]


def test_no_command_deletes_an_overlay() -> None:
    """With it would go the namespace, and all that is in it."""
    assert not re.search(r"delete [^\n]*-k|delete [^\n]*--kustomize", text_of("README.md"))
    for overlay in OVERLAYS:
        assert f"kubectl apply -k cluster/overlays/{overlay}" in text_of("README.md")


def test_a_path_that_is_not_there_is_an_error(tmp_path: Any) -> None:
    """The patches go by index: they fail where the template was changed under them."""
    import shutil
    import subprocess

    if (program := kubectl()) is None:
        pytest.skip("no kubectl")
    tree = shutil.copytree(CLUSTER, tmp_path / "cluster")
    file = tree / "base" / "raycluster.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("- name: cache ", "- name: other "), encoding="utf-8")
    overlay = tree / "overlays" / "service" / "kustomization.yaml"
    overlay.write_text(
        overlay.read_text().replace(
            "- ../../components/redis", "- ../../components/redis\n- ../../components/shared-cache"
        )
    )
    done = subprocess.run([program, "kustomize", overlay.parent], capture_output=True, text=True)
    assert done.returncode != 0
    assert "volumes/1/name" in done.stderr
