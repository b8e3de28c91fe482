"""What Prometheus and Grafana are given: it names pods, ports and figures that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from support.cluster_files import CLUSTER, text_of

from cmoe.common.metrics import SERVING, TRAINING, Metric

MONITOR = "monitoring/podmonitor.yaml"
EXPORTED = {name: metric for metric in (*TRAINING, *SERVING) for name in metric.exported}
METRICS_PORT = 8080  # KubeRay's own, as its port `metrics`


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text_of("monitoring/grafana-dashboard.json"))
    return found


def targets(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for panel in dashboard["panels"]:
        yield from panel.get("targets", ())


def metrics_of(expression: str) -> list[Metric]:
    return [EXPORTED[name] for name in re.findall(r"\bray_cmoe_\w+", expression)]


def names(pattern: str, text: str) -> set[str]:
    """Labels within what a pattern finds."""
    return {name for found in re.findall(pattern, text) for name in re.findall(r"\w+", found)}


def test_every_figure_of_ours_is_shown_and_none_that_there_is_not(
    dashboard: Mapping[str, Any],
) -> None:
    shown = {m.name for each in targets(dashboard) for m in metrics_of(each["expr"])}
    assert shown == {metric.name for metric in (*TRAINING, *SERVING)}
    (run,) = [v for v in dashboard["templating"]["list"] if v["name"] == "run"]
    ((name, label),) = re.findall(r"label_values\((\w+), (\w+)\)", run["query"]["query"])
    assert label in EXPORTED[name].labels


def test_labels_are_those_of_the_figures(dashboard: Mapping[str, Any]) -> None:
    for each in targets(dashboard):
        metrics = metrics_of(each["expr"])
        assert metrics, each
        kept = names(r"\bby \(([^)]*)\)", each["expr"])
        asked = kept | names(r"\{(\w+)=", each["expr"])
        for metric in metrics:
            assert asked <= {*metric.labels, *(("le",) if metric.bounds else ())}, each["expr"]
        assert names(r"\{\{(\w+)\}\}", each["legendFormat"]) <= kept, each


def test_counters_are_shown_as_rates_and_histograms_by_their_buckets(
    dashboard: Mapping[str, Any],
) -> None:
    """The sum of a histogram is rough: Ray's agents take each value for its bucket's middle."""
    for each in targets(dashboard):
        for name in re.findall(r"\bray_cmoe_\w+", each["expr"]):
            if EXPORTED[name].kind != "Gauge":
                assert re.search(rf"rate\({name}(\{{[^}}]*\}})?\[", each["expr"]), each["expr"]
            assert not name.endswith("_seconds_sum")


def test_every_expression_is_one_of_promql(dashboard: Mapping[str, Any]) -> None:
    parser = pytest.importorskip("promql_parser")
    for each in targets(dashboard):
        expression = each["expr"].replace("$__rate_interval", "5m")
        parser.parse(expression)
        with pytest.raises(ValueError, match=r"unexpected|invalid"):
            parser.parse(f"{expression} by")


def test_panels_have_their_own_places(dashboard: Mapping[str, Any]) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        mine = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not mine & cells, panel["title"]
        cells |= mine
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [each for each in yaml.safe_load_all(text_of(MONITOR)) if each["kind"] == kind]
    return found


def test_the_monitor_and_the_policy_are_of_rays_pods() -> None:
    """By the label that KubeRay gives to head and workers, as the other policies know them."""
    ours = next(yaml.safe_load_all(text_of("base/network-policy.yaml")))
    monitor, policy = of_kind("PodMonitor"), of_kind("NetworkPolicy")
    assert monitor["spec"]["selector"] == ours["spec"]["podSelector"]
    assert policy["spec"]["podSelector"] == ours["spec"]["podSelector"]
    for each in (monitor, policy):
        assert each["metadata"]["namespace"] == ours["metadata"]["namespace"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": METRICS_PORT}]
    for peer in rule["from"]:
        assert {"namespaceSelector", "podSelector"} <= peer.keys()


def test_the_monitor_is_one_to_the_operators_own_schema() -> None:
    """Its models drop a field that they don't know: what comes out is what went in."""
    models = pytest.importorskip("cloudcoil.models.prometheus_operator.v1")
    monitor = of_kind("PodMonitor")

    def read(document: Mapping[str, Any]) -> dict[str, Any]:
        made = models.PodMonitor.model_validate(document)
        found: dict[str, Any] = made.model_dump(by_alias=True, exclude_unset=True, mode="json")
        return found

    assert read(monitor)["spec"] == monitor["spec"]
    wrong = json.loads(json.dumps(monitor))
    wrong["spec"]["podMetricsEndpoints"][0]["intervall"] = "15s"
    assert read(wrong)["spec"] != wrong["spec"]


def test_the_readme_names_every_file_of_monitoring() -> None:
    readme = text_of("README.md")
    for file in (CLUSTER / "monitoring").iterdir():
        assert f"cluster/monitoring/{file.name}" in readme
