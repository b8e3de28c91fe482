"""Metrics of all nodes are one page."""

from __future__ import annotations

from cmoe.serving.gateway.metrics import merged


def test_figures_of_several_nodes_are_one_page() -> None:
    pages = [
        "# HELP ray_cmoe_running help\n# TYPE ray_cmoe_running gauge\n"
        f'ray_cmoe_running{{node="{n}"}} {n}\n'
        "# HELP ray_other x\n# TYPE ray_other gauge\nray_other 1\n"
        "# HELP ray_cmoe_train_loss x\n# TYPE ray_cmoe_train_loss gauge\nray_cmoe_train_loss 1\n"
        for n in (1, 2)
    ]
    assert merged([*pages, ""]).splitlines() == [
        "# HELP ray_cmoe_running help",
        "# TYPE ray_cmoe_running gauge",
        'ray_cmoe_running{node="1"} 1',
        'ray_cmoe_running{node="2"} 2',
    ]
