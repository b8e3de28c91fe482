"""What computes next to nothing in the places of a base, a method and an engine.

All else of a stream is the real one: what remains is what its control costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cmoe.data.samples import Sample
from cmoe.methods.method import Trainer
from cmoe.modeling.locator import Location
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive
from cmoe.training.engine import TAG
from cmoe.training.settings import TrainingConfig

LENGTH = 8  # tokens of a sample
FEATURES = 256  # wide
WEIGHTS = 64_000  # that a task adds, and an engine's checkpoint has


class IdleCollator:
    """Makes batches of zeros."""

    def training(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        return self.prompts(samples) | {"labels": torch.zeros(len(samples), LENGTH).long()}

    def prompts(self, samples: Sequence[Sample], length: int = LENGTH) -> dict[str, Tensor]:
        ids = torch.zeros(len(samples), LENGTH, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def answers(self, sequences: Tensor, length: int) -> list[str]:
        return ["yes"] * len(sequences)


class IdleMethod:
    """A method that locates, and whose primitives are of zeros."""

    base_digest = "idle"
    base_parameters = WEIGHTS
    locates = True
    joint = False

    def __init__(self) -> None:
        self.module = nn.Linear(1, 1)
        self.tasks: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        return {}

    def flops_per_token(self, task: int) -> int:
        return 0

    def learning_flops(self, task: int, tokens: Mapping[str, int]) -> int:
        return 0

    def expert_similarity(self) -> None:
        return None

    def append(self, *primitives: Primitive) -> None:
        self.tasks += tuple(primitive.task for primitive in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        trainer.fit("train", samples, lambda forward, inputs, tokens: torch.zeros(()))
        features = trainer.map("features", samples, self.features, first=True)
        entry = trainer.once(lambda: {"mean": torch.cat(features).mean(0)})
        weights = {"weights": torch.zeros(WEIGHTS)}
        primitive = Primitive(task, 1, 1.0, weights, {"router": torch.zeros(1)}, entry)
        self.append(primitive)
        return primitive

    def at_work(self, stage: int) -> set[int]:
        return set(range(stage + 1))

    def features(self, inputs: Inputs) -> Tensor:
        return torch.zeros(len(inputs["input_ids"]), FEATURES)

    def locate(self, features: Tensor) -> Location:
        latest = torch.full((len(features),), len(self.tasks) - 1)
        scores = torch.zeros(len(features), len(self.tasks))
        return Location(latest, scores, torch.zeros(len(features), dtype=torch.bool))

    def generate(self, inputs: Inputs, task: int, **kwargs: Any) -> Tensor:
        ids: Tensor = inputs["input_ids"]
        return torch.cat([ids, ids[:, :1]], 1)


class IdleEngine:
    """An engine's files by their names, and no training."""

    learning_rate = 0.0

    def __init__(
        self,
        module: nn.Module,
        config: TrainingConfig,
        steps: int,
        workers: int,
        *,
        converted: bool = False,
    ) -> None:
        self.model: Callable[..., Any] = module
        self._rank = dist.get_rank() if workers > 1 else 0
        self._share = WEIGHTS // workers

    def backward(self, loss: Tensor) -> None:
        pass

    def update(self) -> Tensor:
        return torch.zeros(())

    def save(self, folder: Path) -> None:
        (folder / TAG).mkdir()
        self._states(folder).write_bytes(bytes(12 * self._share))  # a weight and two moments
        if self._rank == 0:
            (folder / "latest").write_text(TAG)
            self._weights(folder).write_bytes(bytes(4 * WEIGHTS))

    def load(self, folder: Path) -> None:
        for file in (self._states(folder), self._weights(folder)):
            file.read_bytes()

    def close(self) -> None:
        pass

    def _states(self, folder: Path) -> Path:
        return folder / TAG / f"zero_pp_rank_{self._rank}_mp_rank_00_optim_states.pt"

    def _weights(self, folder: Path) -> Path:
        return folder / TAG / "mp_rank_00_model_states.pt"
