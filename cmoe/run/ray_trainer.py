"""Ray Train's trainer, which ends at once where Ray has no dashboard."""

from __future__ import annotations

from typing import Any

from ray._private.worker import get_dashboard_url
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class Trainer(TorchTrainer):
    """What it leaves out looks, by the dashboard, whether the controller died. Without a dashboard
    it never finds out, and every run waits twelve seconds in the end until its look is given up.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        if get_dashboard_url():
            return callbacks
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]
