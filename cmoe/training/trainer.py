"""The phases of one task on the worker group: trainings, passes over samples, checkpoints."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cmoe.common.group import LOST_PEER, Group
from cmoe.common.storage import WRITTEN, StorageError, storage_error
from cmoe.data.batches import Collator, loader, training_order
from cmoe.data.distributed import over_batches
from cmoe.data.samples import Sample
from cmoe.methods.method import Loss
from cmoe.training.engine import Engine, convert, running
from cmoe.training.settings import TrainingConfig

PROGRESS = "progress.json"
TORCH_WRITER = "inline_container"  # in the message of its RuntimeError where a disk is full


class Link(Protocol):
    """What the launcher is to the worker program."""

    def emit(self, event: Mapping[str, Any]) -> None:
        """Show progress: the first rank's is shown, every rank tells its own."""
        ...

    def reached(self, place: Mapping[str, Any]) -> None:
        """Tell where this rank is, as an event does, and show nothing; it costs next to nothing."""
        ...

    def save(self, folder: Path, *, wait: bool) -> None:
        """Keep this rank's share of a checkpoint, and remove the folder; every rank calls it.

        It may come back before that is done, unless it is to wait.
        """
        ...

    def leaving(self) -> bool:
        """Whether a machine of the group is about to be taken away, told once; every rank calls it
        alike.
        """
        ...

    def saved(self) -> AbstractContextManager[Path | None]:
        """The latest checkpoint, all ranks' shares in one folder."""
        ...

    def read_saved(self, name: str) -> str | None:
        """One file of it; None where there is none."""
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
        tokens: By phase: what all workers' passes went over, padding included.
    """

    index: int
    task: str
    workers: int
    phase: str = ""
    step: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


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
        self._regrouped = False
        self._from: dict[str, int] = {}  # the step that a training goes on from
        if (text := link.read_saved(PROGRESS)) is not None:
            self._recover(Progress(**json.loads(text)))

    def _recover(self, saved: Progress) -> None:
        """Take up the progress of a checkpoint, if it is this task's."""
        mine = self.progress
        if (saved.index, saved.task) == (mine.index, mine.task):
            self._regrouped = saved.workers != mine.workers
            self.progress = replace(saved, workers=mine.workers)
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
        with self._named(phase):
            engine, start = self._engine(phase, steps)
        self._from[phase] = start
        mine, weights = micro_batches(order[start:], cfg.micro_batch, group)
        batches = loader(samples, mine, self.collator.training, self.loader_workers)
        # A micro-batch's share of the answer tokens of its whole global batch.
        tokens = counts[order].sum(1) * cfg.micro_batch / cfg.global_batch
        pending: list[Tensor] = []
        passed = 0

        def losses(step: int) -> Iterator[Tensor]:
            nonlocal passed
            for weight in weights:
                inputs = self.group.moved(next(batches))
                self._reach(phase, step, steps)
                passed += inputs["input_ids"].numel()
                yield weight * loss(engine.engine, inputs, float(tokens[step]))

        with self._timed(phase):
            for step in range(start, steps):
                pending.append(engine.step(losses(step)))
                done = step + 1
                leaving = self.link.leaving()
                checkpoint = leaving or done % cfg.checkpoint_every == 0 or done == steps
                if checkpoint or done % cfg.log_every == 0:
                    self._log(phase, pending, passed, done, steps)
                    pending, passed = [], 0
                if checkpoint:
                    self._save(phase, done, engine, wait=leaving)
                if leaving:
                    self._emit("notice", done, steps)
        engine.close()

    def map(
        self,
        phase: str,
        samples: Sequence[Sample],
        compute: Callable[[Mapping[str, Tensor]], Tensor],
        *,
        answers: bool = False,
    ) -> list[Tensor]:
        collate = self.collator.training if answers else self.collator.prompts
        equal = self.config.zero == 3
        with self._timed(phase), running(self.module, self.config.zero):
            return self._over(phase, samples, self.batch_size, collate, compute, equal=equal)

    def total(
        self,
        phase: str,
        samples: Sequence[Sample],
        compute: Callable[[Mapping[str, Tensor]], Tensor],
    ) -> Tensor:
        parts: list[Tensor] = []

        def add(batch: Mapping[str, Tensor]) -> Tensor:
            part = compute(batch)
            parts[:] = [parts[0] + part if parts else part]
            return part.new_zeros(())

        with self._timed(phase):
            self._over(phase, samples, 1, self.collator.training, add, equal=False)
            sizes = self.group.gather(parts[0].shape if parts else None)
            empty = torch.zeros(next(s for s in sizes if s is not None), device=self.group.device)
            return self.group.total(parts[0] if parts else empty)

    def _over(
        self,
        phase: str,
        samples: Sequence[Sample],
        batch_size: int,
        collate: Callable[[Sequence[Sample]], dict[str, Tensor]],
        compute: Callable[[Mapping[str, Tensor]], Tensor],
        *,
        equal: bool,
    ) -> list[Tensor]:
        """A pass over samples as in `over_batches`, whose tokens are counted."""
        passed = 0

        def counted(batch: Mapping[str, Tensor]) -> Tensor:
            nonlocal passed
            passed += batch["input_ids"].numel()
            return compute(batch)

        found = over_batches(
            self.group,
            samples,
            batch_size,
            collate,
            counted,
            equal=equal,
            loader_workers=self.loader_workers,
            done=lambda step, steps: self._emit(phase, step, steps),
        )
        self.progress.tokens[phase] = sum(self.group.gather(passed))
        return found

    def once(self, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        with self._timed("locator"):
            self._emit("locator", 0, 1)
            made = self.group.from_first(make)
            self._emit("locator", 1, 1)
            return made

    def recall(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.progress.notes:
            made = make()
            self.progress.notes[name] = json.loads(json.dumps(made))
        return self.progress.notes[name]

    # Within a training

    def _engine(self, phase: str, steps: int) -> tuple[Engine, int]:
        """The engine of a training, and the step to go on from."""
        workers, resumed = self.group.workers, self._resumable == phase
        converted = resumed and self._regrouped and self.config.zero > 0
        engine = Engine(self.module, self.config, steps, workers, converted=converted)
        if not resumed:
            self.progress.loss[phase], self.progress.tokens[phase] = [], 0
            return engine, 0
        self._resumable = None
        with self.link.saved() as folder, tempfile.TemporaryDirectory() as beside:
            assert folder is not None
            if converted:
                convert(folder, Path(beside))
                folder = Path(beside)
            engine.load(folder)
        return engine, self.progress.step

    def _log(
        self, phase: str, pending: Sequence[Tensor], passed: int, done: int, steps: int
    ) -> None:
        """Bring the losses of the last steps to the host: the only time that a step waits for it.

        Raises:
            FloatingPointError: One isn't finite.
        """
        sums = self.group.total(torch.stack([*pending, pending[0].new_tensor(passed)])).tolist()
        losses = [value / self.group.workers for value in sums[:-1]]
        self.progress.tokens[phase] += round(sums[-1])
        for step, loss in enumerate(losses, done - len(losses) + 1):
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"task {self.progress.task!r}, phase {phase!r}, step {step} of {steps}: the "
                    f"loss is {loss}; lower training.learning_rate or training.clip, or train in "
                    "float32. What was committed before is untouched"
                )
        self.progress.loss[phase] += losses
        self._emit(phase, done, steps, loss=losses[-1])

    def _save(self, phase: str, step: int, engine: Engine, *, wait: bool) -> None:
        self.progress.phase, self.progress.step = phase, step
        folder = Path(tempfile.mkdtemp(prefix="cmoe-checkpoint-"))
        try:
            engine.save(folder)
            if self.group.first:
                text = json.dumps(asdict(self.progress))
                (folder / PROGRESS).write_text(text, encoding="utf-8")
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            # Saving is collective, too: a lost peer is no full disk.
            if isinstance(error, RuntimeError) and TORCH_WRITER in str(error):
                why = f"its disk is full or fails; free some space there ({error})"
            elif isinstance(error, OSError) and not isinstance(error, LOST_PEER):
                why = str(storage_error(error, folder, WRITTEN))
            else:
                raise
            raise StorageError(
                f"the checkpoint of step {step} can't be written by way of {folder}: {why}"
            ) from error
        self.link.save(folder, wait=wait)

    @contextmanager
    def _named(self, phase: str) -> Iterator[None]:
        """Say in an error, and while nothing else is told, what was under way."""
        self.link.reached(self._place(phase))
        try:
            yield
        except Exception as error:
            error.add_note(f"in task {self.progress.task!r}, phase {phase!r}")
            raise

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        with self._named(phase):
            yield
        passed = time.monotonic() - start
        self.progress.seconds[phase] = self.progress.seconds.get(phase, 0.0) + passed

    def _emit(self, phase: str, step: int, steps: int, **more: float) -> None:
        start = {"from": self._from.get(phase, 0)}
        self.link.emit(self._place(phase) | {"step": step, "steps": steps} | start | more)

    def _reach(self, phase: str, step: int, steps: int) -> None:
        self.link.reached(self._place(phase) | {"step": step, "steps": steps})

    def _place(self, phase: str) -> dict[str, Any]:
        return {"index": self.progress.index, "task": self.progress.task, "phase": phase}


def micro_batches(
    order: Any, micro_batch: int, group: Group
) -> tuple[list[list[int]], list[float]]:
    """This rank's micro-batches of every step, and how much each of a step's counts.

    Whole ones, cut alike for any number of workers. Where they don't divide evenly, ranks repeat
    one that counts nothing, as all must make equally many passes; and as the engine takes the mean
    over all, the others count more.
    """
    steps, batch = order.shape
    count = batch // micro_batch
    mine = np.arange(group.rank, -(-count // group.workers) * group.workers, group.workers)
    weights = np.where(mine < count, len(mine) * group.workers / count, 0.0)
    cut = order.reshape(steps, count, micro_batch)[:, mine % count]
    return cut.reshape(-1, micro_batch).tolist(), weights.tolist()
