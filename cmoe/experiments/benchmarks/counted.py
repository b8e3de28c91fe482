"""A run's own stream, trainer and link, which write into a worker's ledger what is under way."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from cmoe.common.group import Group
from cmoe.config.tree import RunConfig
from cmoe.data.samples import Task
from cmoe.experiments.benchmarks.idle import IdleCollator, IdleEngine, IdleMethod
from cmoe.experiments.benchmarks.threads import Ledger, is_worker
from cmoe.folder import TRAIN
from cmoe.run.heartbeat import Heartbeat
from cmoe.run.stream import Stream
from cmoe.run.worker import RayLink
from cmoe.training.trainer import TaskTrainer

OPENING, AGAIN = "opening", "opening again"
STEP, CHECKPOINT, FEATURES, COMMITTING = "a step", "a checkpoint", "features", "committing"
EVALUATING, RECALLING, RESUMING = "evaluating", "recalling", "resuming"
PHASES = {"train": STEP, "features": FEATURES, "locator": FEATURES, "committing": COMMITTING}
"""Operations by the phases that a worker tells."""


class LostError(Exception):
    """The group is lost."""


@dataclass(frozen=True)
class Actors:
    """What all workers call.

    Attributes:
        board: The board, counted.
        meet: Called by every rank with its number, it waits for all: what Ray Train's collectives
            are, by one actor.
        get: Gives what a call comes to.
    """

    board: Any
    meet: Callable[[int], object]
    get: Callable[[Any], Any]


class CountedLink(RayLink):
    """A link to the board, with checkpoints kept as Ray Train keeps them.

    Args:
        config: The run.
        group: The worker's.
        ledger: The worker's.
        actors: Of the group.
        together: Waits for all workers, uncounted: where Ray's controller does.
        lost_behind: Checkpoints behind which the group is lost; 0 for never.
    """

    def __init__(
        self,
        config: RunConfig,
        group: Group,
        ledger: Ledger,
        actors: Actors,
        together: threading.Barrier,
        lost_behind: int = 0,
    ) -> None:
        heartbeat = Heartbeat(actors.board, group.rank)
        super().__init__(actors.board, config.url, heartbeat, lambda: 0, first=group.first)
        self.ledger = ledger
        self._group, self._actors, self._together = group, actors, together
        self._left = lost_behind
        self._kept = config.folder / TRAIN / "checkpoint"

    def emit(self, event: Mapping[str, Any]) -> None:
        self._enter(event)
        super().emit(event)

    def reached(self, place: Mapping[str, Any]) -> None:
        self._enter(place)
        super().reached(place)

    def _enter(self, place: Mapping[str, Any]) -> None:
        if place["phase"] in PHASES and "of" not in place:
            self.ledger.enter(PHASES[place["phase"]])

    def save(self, folder: Path, *, wait: bool) -> None:
        self._actors.meet(self._group.rank)
        shutil.copytree(folder, self._kept, dirs_exist_ok=True)
        shutil.rmtree(folder)
        self._together.wait()
        self._left -= 1
        if not self._left:
            raise LostError

    def leaving(self) -> bool:
        return False

    @contextmanager
    def saved(self, needed: Callable[[str], bool] | None = None) -> Iterator[Path | None]:
        with self.ledger.within(RESUMING), super().saved(needed) as folder:
            yield folder

    def read_saved(self, name: str) -> str | None:
        with self.ledger.within(RESUMING):
            return super().read_saved(name)

    def _latest(self) -> Any:
        """The checkpoint on a storage that isn't the machine's disk, as far as is seen."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem
        from ray.train import Checkpoint

        if not self._kept.is_dir():
            return None
        return Checkpoint(str(self._kept), PyFileSystem(FSSpecHandler(_Storage(self.ledger))))


class _Storage(LocalFileSystem):
    """A disk in a storage's place: what threads of pyarrow read there is counted, too."""

    cachable = False

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if not is_worker():
            self._ledger.counts[RESUMING].files += 1
        return super()._open(path, *args, **kwargs)


class CountedTrainer(TaskTrainer):
    engine: Callable[..., Any] = IdleEngine
    link: CountedLink

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with self.link.ledger.within(CHECKPOINT):
            super()._save(*args, **kwargs)


class CountedStream(Stream):
    trainer = CountedTrainer
    link: CountedLink

    def _loaded(self) -> tuple[Any, Any]:
        return IdleMethod(), IdleCollator()

    def recall(self, index: int) -> None:
        self.link.ledger.enter(RECALLING)
        super().recall(index)

    def learn(self, index: int, task: Task) -> None:
        self.link.ledger.enter(RESUMING)
        super().learn(index, task)

    def evaluate(self, stage: int) -> None:
        self.link.ledger.enter(EVALUATING)
        super().evaluate(stage)
