"""Ray Train's trainer, without helpers of its that end runs which are well, or that none needs."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

LEFT_OUT = (PlacementGroupCleanerCallback, DatasetsCallback)


class Trainer(TorchTrainer):
    """What it leaves out is to free what a lost controller held, which Ray does anyway, and to
    share Ray's datasets, of which a run has none: a process that imports while the workers do.

    The first asks for the controller by the dashboard of whichever Ray was started last on the
    machine: where there are two, it finds no such controller and takes the run's workers away;
    where that one has no dashboard, every run waits twelve seconds in the end until the look is
    given up.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [c for c in callbacks if not isinstance(c, LEFT_OUT)]
