"""The trainings and passes of one task on the worker group, with checkpoints within them."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmoe.common.files import temporary_folder
from cmoe.common.group import LOST_PEER, Group
from cmoe.common.storage import StorageError, explained, storage_error
from cmoe.common.storage_errors import WRITTEN
from cmoe.data.batches import IGNORED, training_order
from cmoe.data.loader import Kind
from cmoe.data.samples import Sample
from cmoe.data.session import Session
from cmoe.methods.method import Loss
from cmoe.training.counting import Counted, Sum, Told
from cmoe.training.engine import Engine, gathering, of_another
from cmoe.training.link import Link
from cmoe.training.regrouping import converted
from cmoe.training.settings import TrainingConfig

PROGRESS = "progress.json"
TORCH_WRITER = "inline_container"  # in the message of its RuntimeError where a disk is full
LEAVING_EVERY = 5
"""Steps between two looks whether a machine is about to leave: the host waits for its device."""


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


class TaskTrainer:
    """The `Trainer` that a method learns one task with.

    Args:
        module: The method's network.
        session: The worker's.
        config: How to train.
        link: The launcher.
        seed: Of the order of samples.
        index: The task's place in the stream.
        task: Its name.
        earlier: Training samples of earlier tasks by name, for a method that is told them.

    Attributes:
        progress: How far the task has come; taken up from the latest checkpoint if that is its own.
    """

    engine: Callable[..., Engine] = Engine

    def __init__(
        self,
        module: nn.Module,
        session: Session,
        config: TrainingConfig,
        link: Link,
        *,
        seed: int,
        index: int,
        task: str,
        earlier: Mapping[str, Sequence[Sample]] = MappingProxyType({}),
    ) -> None:
        self.earlier = earlier
        self.module, self.session, self.config, self.link = module, session, config, link
        self.seed = seed
        self.progress = Progress(index, task, session.group.workers)
        self._resumable: str | None = None  # the training that the checkpoint is of
        self._regrouped = False  # whether another number of workers wrote it
        self._from: dict[str, int] = {}  # the step that a training goes on from
        text = session.group.from_first(lambda: link.read_saved(PROGRESS))
        if text is not None:
            self._recover(Progress(**json.loads(text)))

    def _recover(self, saved: Progress) -> None:
        mine = self.progress
        if (saved.index, saved.task) == (mine.index, mine.task):
            self._regrouped = saved.workers != mine.workers
            self.progress = replace(saved, workers=mine.workers)
            self._resumable = saved.phase

    # What a method asks for

    def fit(
        self, phase: str, samples: Sequence[Sample], loss: Loss, steps: int | None = None
    ) -> None:
        config, group = self.config, self.session.group
        steps = steps or config.steps_for(len(samples))
        with self._named(phase):
            engine, start = self._engine(phase, steps)
        self._from[phase] = start
        seed = f"{self.seed}/{self.progress.task}/{phase}"
        order = training_order(len(samples), steps, config.global_batch, seed)
        numbers, weights = micro_batches(order[start:], config.micro_batch, group)
        loader = self.session.loader.batches("training", samples, numbers)
        told = Told()
        with self._timed(phase):
            for step in range(start, steps):
                batches = [next(loader) for _ in weights]
                tokens, asked = group.total(self._counts(step, batches, weights))
                share = tokens.double() * config.micro_batch / config.global_batch
                for batch, weight in zip(batches, weights, strict=True):
                    self._reach(phase, step, steps)
                    inputs = group.moved(batch)
                    engine.backward(weight * loss(engine.model, inputs, share))
                told.add(engine.update(), batches)
                leaving = _asks(step) and bool(asked)
                self._step_done(phase, step + 1, steps, engine, told, leaving)
        engine.close()

    def map(
        self,
        phase: str,
        samples: Sequence[Sample],
        compute: Callable[[Mapping[str, Tensor]], Tensor],
        *,
        answers: bool = False,
        first: bool = False,
    ) -> list[Tensor]:
        kind: Kind = "training" if answers else "prompts"
        with (
            self._timed(phase),
            gathering(self.module, self.config.zero),
            self._counted(phase, compute) as counted,
        ):
            over = self.session.over
            return over(samples, kind, counted, partial(self._emit, phase), first=first)

    def total(
        self,
        phase: str,
        samples: Sequence[Sample],
        compute: Callable[[Mapping[str, Tensor]], Tensor],
    ) -> Tensor:
        group, sums = self.session.group, Sum(compute)
        with self._timed(phase):
            with self._counted(phase, sums.add) as counted:
                self.session.each(samples, "training", counted, partial(self._emit, phase), 1)
            total = sums.total
            if len(samples) < group.workers:  # the last ones have none
                shape = group.from_first(lambda: () if total is None else total.shape)
                total = torch.zeros(shape, device=group.device) if total is None else total
            assert total is not None
            return group.total(total)

    def once(self, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        with self._timed("locator"):
            self._emit("locator", 0, 1)
            made = self.session.group.from_first(make)
            self._emit("locator", 1, 1)
            return made

    def recall(self, task: str) -> Sequence[Sample]:
        if task not in self.earlier:
            raise ValueError(
                f"task {self.progress.task!r}: samples of {task!r} can't be had; it is no earlier "
                "task, or the method isn't registered as told samples of earlier tasks"
            )
        return self.earlier[task]

    def noted(self, name: str) -> Any:
        return self.progress.notes.get(name)

    def note(self, name: str, value: Any) -> Any:
        self.progress.notes[name] = json.loads(json.dumps(value))
        return self.progress.notes[name]

    # Within a training

    def _engine(self, phase: str, steps: int) -> tuple[Engine, int]:
        """The engine of a training, and the step to go on from."""
        group, resumed = self.session.group, self._resumable == phase
        regrouped = resumed and self._regrouped and self.config.zero > 0
        engine = self.engine(self.module, self.config, steps, group.workers, converted=regrouped)
        if not resumed:
            self.progress.loss[phase], self.progress.tokens[phase] = [], 0
            return engine, 0
        self._resumable = None
        with (
            converted(self.link, group)
            if regrouped
            else self.link.saved(lambda name: not of_another(group.rank, name))
        ) as folder:
            assert folder is not None
            engine.load(folder)
        return engine, self.progress.step

    def _counts(
        self, step: int, batches: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> Tensor:
        """What this worker adds to a step's counts: answer tokens, and 1 where rank 0 has heard
        that a machine is about to leave.
        """
        group = self.session.group
        leaving = _asks(step) and group.first and self.link.leaving()
        tokens = answer_tokens(batches, weights)
        return torch.stack([tokens, tokens.new_tensor(leaving)]).to(group.device)

    def _step_done(
        self, phase: str, done: int, steps: int, engine: Engine, told: Told, leaving: bool
    ) -> None:
        """Report and save every so many steps, and where a machine is about to leave."""
        saving = leaving or done % self.config.checkpoint_every == 0 or done == steps
        if saving or done % self.config.log_every == 0:
            self._report(phase, done, steps, engine.learning_rate, told)
        if saving:
            self._save(phase, done, engine, wait=leaving)
        if leaving:
            self._emit("notice", done, steps)

    def _report(self, phase: str, done: int, steps: int, rate: float, told: Told) -> None:
        """Bring the losses of the last steps to the host: the only time that a step waits for it.

        Raises:
            FloatingPointError: One isn't finite.
        """
        group = self.session.group
        *sums, tokens = group.total(told.taken()).tolist()
        losses = [value / group.workers for value in sums]
        self.progress.tokens[phase] += round(tokens)
        for step, loss in enumerate(losses, done - len(losses) + 1):
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"task {self.progress.task!r}, phase {phase!r}, step {step} of {steps}: the "
                    f"loss is {loss}; lower training.learning_rate or training.clip, or train in "
                    "float32. What was committed before is untouched"
                )
        self.progress.loss[phase] += losses
        counted = self.progress.tokens[phase]
        self._emit(phase, done, steps, loss=losses[-1], learning_rate=rate, tokens=counted)

    def _save(self, phase: str, step: int, engine: Engine, *, wait: bool) -> None:
        self.progress.phase, self.progress.step = phase, step
        self._resumable = None  # what it was of is gone
        place = temporary_folder()
        with explained(place, WRITTEN):
            folder = Path(tempfile.mkdtemp(prefix="cmoe-checkpoint-", dir=place))
        try:
            engine.save(folder)
            if self.session.group.first:
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

    # Passes and places

    @contextmanager
    def _counted(
        self, phase: str, compute: Callable[[Mapping[str, Tensor]], Any]
    ) -> Iterator[Counted]:
        """`compute` for a pass over samples, whose tokens are counted over all workers."""
        group, counted = self.session.group, Counted(compute)
        yield counted
        tokens = group.total(torch.tensor(counted.tokens, device=group.device))
        self.progress.tokens[phase] = int(tokens)

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


def _asks(step: int) -> bool:
    """Whether the workers look in this step whether a machine is about to leave."""
    return (step + 1) % LEAVING_EVERY == 0


def answer_tokens(batches: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Tensor:
    """How many answer tokens a worker adds to a step: a whole number, on the host."""
    counts = [
        (batch["labels"] != IGNORED).sum()
        for batch, weight in zip(batches, weights, strict=True)
        if weight
    ]
    return torch.stack(counts).sum() if counts else torch.tensor(0)


def micro_batches(
    order: NDArray[np.int64], micro_batch: int, group: Group
) -> tuple[list[list[int]], list[float]]:
    """This worker's micro-batches of every step, and how much each of a step's counts.

    Whole ones, cut alike for any number of workers. Where they don't divide evenly, workers repeat
    one that counts nothing, as all must make equally many passes; and as the engine takes the mean
    over all, the others count more.
    """
    steps, batch = order.shape
    count = batch // micro_batch
    mine = np.arange(group.rank, -(-count // group.workers) * group.workers, group.workers)
    weights = np.where(mine < count, len(mine) * group.workers / count, 0.0)
    cut = order.reshape(steps, count, micro_batch)[:, mine % count]
    return cut.reshape(-1, micro_batch).tolist(), weights.tolist()
