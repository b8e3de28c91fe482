"""The phases of one task on the worker group: trainings, passes over samples, checkpoints."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cmoe.data.batches import Collator, loader, training_order
from cmoe.data.samples import Sample
from cmoe.group import Group
from cmoe.methods.method import Loss
from cmoe.passes import over_batches
from cmoe.training.engine import Engine, TrainingConfig, running

PROGRESS = "progress.json"


class Link(Protocol):
    """What the launcher is to the worker program."""

    def emit(self, event: Mapping[str, Any]) -> None:
        """Show progress."""
        ...

    def save(self, folder: Path) -> None:
        """Keep this rank's share of a checkpoint; every rank calls it."""
        ...

    def saved(self) -> AbstractContextManager[Path | None]:
        """The latest checkpoint, all ranks' shares in one folder."""
        ...


@dataclass
class Progress:
    """How far a task has come; written with every checkpoint.

    Attributes:
        index: The task's place in the stream.
        task: Its name.
        workers: How many shared the checkpoint.
        phase: The training that was under way.
        step: Steps of it that are done.
        notes: What the method must know again.
        loss: Mean loss of every step, by training.
        seconds: By phase.
    """

    index: int
    task: str
    workers: int
    phase: str = ""
    step: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Phases:
    """The `Trainer` that a method learns one task with.

    Args:
        module: The method's network.
        group: The workers.
        config: How to train.
        collator: Of the base.
        link: The launcher.
        seed: Of the order of samples.
        index: The task's place in the stream.
        task: Its name.
        batch_size: Samples of a pass without gradients.
        loader_workers: As in `loader`.
    """

    def __init__(
        self,
        module: nn.Module,
        group: Group,
        config: TrainingConfig,
        collator: Collator,
        link: Link,
        *,
        seed: int,
        index: int,
        task: str,
        batch_size: int,
        loader_workers: int,
    ) -> None:
        self.module, self.group, self.config = module, group, config
        self.collator, self.link, self.seed = collator, link, seed
        self.batch_size, self.loader_workers = batch_size, loader_workers
        self.progress = Progress(index, task, group.workers)
        self._resumable: str | None = None
        with link.saved() as folder:
            self._recover(folder)

    def _recover(self, folder: Path | None) -> None:
        """Take up the progress of a checkpoint, if it is this task's and this group's."""
        if folder is None or not (folder / PROGRESS).is_file():
            return
        saved = Progress(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
        mine = self.progress
        if (saved.index, saved.task, saved.workers) == (mine.index, mine.task, mine.workers):
            self.progress = saved
            self._resumable = saved.phase

    # What a method asks for

    def fit(
        self, phase: str, samples: Sequence[Sample], loss: Loss, steps: int | None = None
    ) -> None:
        cfg, group = self.config, self.group
        steps = steps or cfg.steps_for(len(samples))
        order = training_order(
            len(samples), steps, cfg.global_batch, f"{self.seed}/{self.progress.task}/{phase}"
        )
        counts = np.array([sum(tail.answers) for tail in self.collator.tails(samples)])
        engine = Engine(self.module, cfg, steps, group.workers)
        start = self._resume(phase, engine)
        mine = _micro_batches(order[start:], cfg.micro_batch, group)
        batches = loader(samples, mine, self.collator.training, self.loader_workers)
        # A micro-batch's share of the answer tokens of its whole global batch.
        tokens = counts[order].sum(1) * cfg.micro_batch / cfg.global_batch
        pending: list[Tensor] = []
        with self._timed(phase):
            for step in range(start, steps):
                losses = (
                    loss(engine.engine, self.group.moved(next(batches)), float(tokens[step]))
                    for _ in range(engine.accumulation)
                )
                pending.append(engine.step(losses))
                done = step + 1
                checkpoint = done % cfg.checkpoint_every == 0 or done == steps
                if checkpoint or done % cfg.log_every == 0:
                    self._log(phase, pending, done, steps)
                    pending = []
                if checkpoint:
                    self._save(phase, done, engine)
        engine.close()

    def map(
        self,
        phase: str,
        samples: Sequence[Sample],
        compute: Callable[[Mapping[str, Tensor]], Tensor],
        *,
        answers: bool = False,
    ) -> list[Tensor]:
        with self._timed(phase), running(self.module, self.config.zero):
            return over_batches(
                self.group,
                samples,
                self.batch_size,
                self.collator.training if answers else self.collator.prompts,
                compute,
                equal=self.config.zero == 3,
                loader_workers=self.loader_workers,
                done=lambda step, steps: self._emit(phase, step, steps),
            )

    def once(self, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        with self._timed("locator"):
            return self.group.from_first(make)

    def recall(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.progress.notes:
            made = make()
            self.progress.notes[name] = json.loads(json.dumps(made))
        return self.progress.notes[name]

    # Within a training

    def _resume(self, phase: str, engine: Engine) -> int:
        """The step to go on from."""
        if self._resumable != phase:
            self.progress.loss[phase] = []
            return 0
        self._resumable = None
        with self.link.saved() as folder:
            assert folder is not None
            engine.load(folder)
        return self.progress.step

    def _log(self, phase: str, pending: Sequence[Tensor], done: int, steps: int) -> None:
        """Bring the losses of the last steps to the host: the only time that a step waits for it.

        Raises:
            FloatingPointError: One isn't finite.
        """
        losses = self.group.mean(torch.stack(list(pending))).tolist()
        for step, loss in enumerate(losses, done - len(losses) + 1):
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"task {self.progress.task!r}, phase {phase!r}, step {step} of {steps}: the "
                    f"loss is {loss}; lower training.learning_rate or training.clip, or train in "
                    "float32. What was committed before is untouched"
                )
        self.progress.loss[phase] += losses
        self._emit(phase, done, steps, loss=losses[-1])

    def _save(self, phase: str, step: int, engine: Engine) -> None:
        self.progress.phase, self.progress.step = phase, step
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                engine.save(folder)
                if self.group.first:
                    text = json.dumps(asdict(self.progress))
                    (folder / PROGRESS).write_text(text, encoding="utf-8")
                self.link.save(folder)
            except (OSError, RuntimeError) as error:  # torch's writer raises the second
                raise OSError(
                    f"the checkpoint of step {step} can't be written by way of {folder}; is the "
                    f"disk full? {error}"
                ) from error

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            error.add_note(f"in task {self.progress.task!r}, phase {phase!r}")
            raise
        passed = time.monotonic() - start
        self.progress.seconds[phase] = self.progress.seconds.get(phase, 0.0) + passed

    def _emit(self, phase: str, step: int, steps: int, **more: float) -> None:
        if self.group.first:
            of = {"index": self.progress.index, "task": self.progress.task, "phase": phase}
            self.link.emit(of | {"step": step, "steps": steps} | more)


def _micro_batches(order: Any, micro_batch: int, group: Group) -> list[list[int]]:
    """This rank's micro-batches of every step: whole ones, cut alike for any number of workers."""
    steps, batch = order.shape
    cut = order.reshape(steps, batch // micro_batch, micro_batch)
    return [row.tolist() for step in cut for row in step[group.rank :: group.workers]]
