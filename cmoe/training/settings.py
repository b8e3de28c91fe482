"""What training can be told, a section of a run's configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cmoe.common.bounds import require


@dataclass(frozen=True)
class TrainingConfig:
    """How a task is trained.

    Attributes:
        steps: Optimizer steps for each task; null derives them from `epochs`.
        epochs: Passes over a task's samples.
        global_batch: Samples of one optimizer step, whatever the number of workers.
        micro_batch: Samples of one forward pass. `global_batch` is accumulated from as many as it
            takes; where the workers can't share them evenly, some repeat one that doesn't count.
        learning_rate: AdamW's learning rate at its peak; cosine decay to 0.
        warmup: Share of the steps with linear warm-up.
        weight_decay: Of AdamW.
        clip: Largest gradient norm.
        zero: DeepSpeed's ZeRO stage: 0 replicates all, 1 shards optimizer states, 2 gradients
            too, 3 the decoder's weights too, the frozen ones included (not the vision tower's).
        gradient_checkpointing: Recompute activations in the backward pass.
        checkpointed_layers: Of how many decoder layers, where not of all: the others keep theirs,
            which takes memory and saves a pass through them. `cmoe plan` says how many must be.
        checkpoint_every: Steps from one checkpoint within a phase to the next.
        log_every: Steps from one progress report to the next.
    """

    steps: int | None = None
    epochs: float = 1.0
    global_batch: int = 32
    micro_batch: int = 16
    learning_rate: float = 2e-4
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    zero: Literal[0, 1, 2, 3] = 2
    gradient_checkpointing: bool = False
    checkpointed_layers: int | None = None
    checkpoint_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        counts = ("steps", "global_batch", "micro_batch", "checkpoint_every", "log_every")
        require(self, "training", *counts, least=1)
        if self.checkpointed_layers is not None:
            require(self, "training", "checkpointed_layers", least=1)
            if not self.gradient_checkpointing:
                raise ValueError(
                    f"training.checkpointed_layers is {self.checkpointed_layers}, and "
                    "training.gradient_checkpointing is false; set it to true"
                )
        require(self, "training", "epochs", "learning_rate", "clip", above=0)
        require(self, "training", "weight_decay", least=0)
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"training.global_batch is {self.global_batch}; with training.micro_batch "
                f"{self.micro_batch} a multiple of that is needed"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"training.warmup is {self.warmup}; 0 or more, and less than 1")

    def accumulation(self, workers: int) -> int:
        """Micro-batches that each worker contributes to a step, at most.

        Raises:
            ValueError: There are fewer of them than workers.
        """
        count = self.global_batch // self.micro_batch
        if workers > count:
            raise ValueError(
                f"training.global_batch is {self.global_batch}, {count} of training.micro_batch "
                f"{self.micro_batch}; at most so many workers (cluster.workers), not {workers}"
            )
        return -(-count // workers)

    def steps_for(self, samples: int) -> int:
        """Optimizer steps of a task with so many samples."""
        return self.steps or max(1, math.ceil(self.epochs * samples / self.global_batch))
