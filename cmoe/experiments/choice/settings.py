"""What the study of a choice can be told: a section beside the run's own.

Nothing heavy is imported here, as in any room's settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cmoe.common.bounds import require


@dataclass(frozen=True)
class ChoiceConfig:
    """Which tasks' choices are judged, and beside how many others.

    Attributes:
        tasks: Of `data.tasks`; each is learned behind all that come before it there.
        layers: Layers of a set.
        random: Sets that are drawn by the seed.
        repeats: Trainings of every set, each with another order of samples.
        store: Folder of a log that begins with the tasks before; null learns them first.
        cpus: CPU cores of a training.
        gpus: GPUs of a training, whole or a part: at 0.25 four are trained side by side on each.
            Null takes one where the cluster has any.
    """

    tasks: tuple[str, ...] = ()
    layers: int = 3
    random: int = 20
    repeats: int = 1
    store: str | None = None
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        require(self, "choice", "layers", "random", "repeats", "cpus", least=1)
        require(self, "choice", "gpus", least=0)
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"choice.tasks is {list(self.tasks)}; each once")

    def as_dict(self) -> dict[str, Any]:
        """What comes out depends on, as JSON."""
        kept = ("tasks", "layers", "random", "repeats", "store")
        values = {name: getattr(self, name) for name in kept}
        return values | {"tasks": list(self.tasks)}
