"""What a run takes of disks and of each GPU, at worst, without its data being read."""

from __future__ import annotations

from dataclasses import dataclass

from cmoe.config.tree import RunConfig
from cmoe.experiments.planning.memory import memory
from cmoe.experiments.planning.sizes import (
    added,
    most_trained,
    shape_of,
    stored,
    worst_growth,
)
from cmoe.modeling.pretrained import load_shape

CHECKPOINT = 16  # bytes of a trained parameter: itself, its float32 copy, Adam's two moments
KEPT = 2  # checkpoints: the last good one, and the one that is being written


@dataclass(frozen=True)
class Footprint:
    """Bytes.

    Attributes:
        runs: In the run's folder: the store, and its checkpoints.
        temp: Of a worker's temporary files: a checkpoint that is uploaded, and the next.
        gpu: That a GPU holds at most.
    """

    runs: float
    temp: float
    gpu: float


def footprint(config: RunConfig) -> Footprint:
    """What a run of a method that a plan knows takes.

    Raises:
        MissingModelError: The base's configuration isn't there.
        UnsupportedModelError: The base can't grow.
    """
    model = config.model
    shape = shape_of(
        load_shape(model.path, revision=model.revision),
        attention="experts" in config.method_sections and config.experts.attention > 0,
    )
    growth = worst_growth(config, shape)
    store = stored(config, added(config, shape, growth))
    checkpoints = KEPT * CHECKPOINT * most_trained(config, shape, growth)
    phases = memory(config, shape, config.data.train_samples or 0)
    return Footprint(store + checkpoints, checkpoints, max(phase.total for phase in phases))
