"""Metrics of all nodes are one page."""

from __future__ import annotations

from cmoe.serving.gateway.metrics import merged


def test_figures_of_several_nodes_are_one_page() -> None:
    pages = [
        f'# HELP ray_cmoe_a help\n# TYPE ray_cmoe_a counter\nray_cmoe_a{{node="{n}"}} {n}\n'
        "# HELP ray_other x\n# TYPE ray_other gauge\nray_other 1\n"
        for n in (1, 2)
    ]
    assert merged([*pages, ""]).splitlines() == [
        "# HELP ray_cmoe_a help",
        "# TYPE ray_cmoe_a counter",
        'ray_cmoe_a{node="1"} 1',
        'ray_cmoe_a{node="2"} 2',
    ]
