"""Replay: one LoRA that is trained on some samples of every earlier task again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, overload

from cmoe.common.errors import DataError
from cmoe.data.samples import Sample
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.method import Trainer, seed_of
from cmoe.methods.settings import LoRAConfig, ReplayConfig
from cmoe.modeling.primitive import Primitive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT = "kept"
"""In a primitive's decision: of each sample that is kept its place in the task, and its id."""

Kept = Sequence[tuple[int, str]]


class Replay(SequentialLoRA):
    """One LoRA that goes on training, on what earlier tasks kept as well: no stream without data.

    Experience replay (Chaudhry et al. 2019, arXiv 1902.10486): a step takes samples of the new task
    and kept ones of the earlier tasks, as many of each by default. Which are kept is drawn from the
    seed. The task's record names them, so that they are read from the data again wherever the
    stream goes on.

    Args:
        base: Frozen, and wrapped in place.
        lora: The adapter's size.
        replay: How many are kept, and how often they come.
        seed: Of fresh weights, and of what is kept.
    """

    name = "replay"

    def __init__(
        self, base: PreTrainedModel, lora: LoRAConfig, replay: ReplayConfig, seed: int
    ) -> None:
        super().__init__(base, lora, seed)
        self.replay, self.seed = replay, seed
        self._kept: dict[str, Kept] = {}

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"replay": asdict(self.replay)}

    def append(self, *primitives: Primitive) -> None:
        super().append(*primitives)
        self._kept |= {p.task: p.decision[KEPT] for p in primitives}

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        again = [
            sample
            for earlier, kept in self._kept.items()
            for sample in recalled(earlier, trainer.recall(earlier), kept)
        ]
        draw = Random(seed_of(self.seed, task, "replay"))
        count = min(self.replay.samples, len(samples))
        places = sorted(draw.sample(range(len(samples)), count))
        primitive = super().learn(task, mixed(samples, again, self.replay.share, draw), trainer)
        self._kept[task] = [(place, samples[place].id) for place in places]
        return replace(primitive, decision={KEPT: self._kept[task]})


def recalled(task: str, samples: Sequence[Sample], kept: Kept) -> list[Sample]:
    """The samples that an earlier task kept.

    Args:
        task: Its name.
        samples: Its training data.
        kept: Places and ids, as its record has them.

    Raises:
        DataError: Another sample is in such a place: the data isn't what was learned.
    """
    found = []
    for place, name in kept:
        there = samples[place] if place < len(samples) else None
        if there is None or there.id != name:
            raise DataError(
                f"task {task!r}: training sample {place} was {name!r} when it was kept, and is "
                f"{there.id if there else None!r} now; put the data back as it was"
            )
        found.append(there)
    return found


@dataclass(frozen=True)
class Mixed(Sequence[Sample]):
    """A task's samples, and behind them kept ones in a given order.

    Attributes:
        samples: The task's own, read when they are asked for.
        again: The kept ones.
        order: Indices of `again`.
    """

    samples: Sequence[Sample]
    again: Sequence[Sample]
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.samples) + len(self.order)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, int) else [self._at(i) for i in places]

    def _at(self, place: int) -> Sample:
        own = len(self.samples)
        return self.samples[place] if place < own else self.again[self.order[place - own]]


def mixed(
    samples: Sequence[Sample], again: Sequence[Sample], share: float, draw: Random
) -> Sequence[Sample]:
    """What a task is trained on: each of its samples once, and kept ones for a share of the whole.

    Every kept sample comes as often as every other, but for one time: those of all tasks alike.

    Args:
        samples: The task's own.
        again: Those kept of earlier tasks; none for a first task.
        share: Of the whole, for the kept ones.
        draw: Their order.
    """
    if not again:
        return samples
    count = round(len(samples) * share / (1 - share))
    order: list[int] = []
    while len(order) < count:
        order += draw.sample(range(len(again)), len(again))
    return Mixed(samples, again, order[:count])
