"""A second `Trainer`: one plain process and torch's AdamW, for methods on tiny models.

A sample is nothing but a number here: it seeds a picture and a row of tokens, whose last two are
the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from support.tiny_models import make_inputs
from torch import Tensor, nn

from cmoe.data.samples import Sample
from cmoe.methods.method import Loss
from cmoe.modeling.outputs import Inputs

ANSWER = 2


def make_samples(count: int, start: int = 0) -> list[Sample]:
    return [Sample(str(i), "", "") for i in range(start, start + count)]


def make_batch(samples: Sequence[Sample], *, answers: bool) -> dict[str, Tensor]:
    """Rows of several lengths, padded on the left, each the same in any batch."""
    rows = []
    for number in (int(s.id) for s in samples):
        three = make_inputs(seed=number)
        rows.append({name: t[number % 3 : number % 3 + 1] for name, t in three.items()})
    inputs = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    if not answers:
        return {n: t if n == "pixel_values" else t[:, :-ANSWER] for n, t in inputs.items()}
    labels = inputs["input_ids"].clone()
    labels[:, :-ANSWER] = -100
    return inputs | {"labels": labels}


class PlainTrainer:
    """Trains in one process, and remembers what it was asked for.

    Attributes:
        seen: By phase, the samples it got, in the order of the phases.
        taken: By training, the steps that were asked for; None where it was left to the trainer.
        losses: By training, its loss function.
        curves: By training, the loss of every step.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        steps: int = 3,
        learning_rate: float = 0.03,
        notes: Mapping[str, Any] | None = None,
        earlier: Mapping[str, Sequence[Sample]] | None = None,
        collate: Callable[..., dict[str, Tensor]] = make_batch,
    ) -> None:
        self.module, self.steps, self.learning_rate = module, steps, learning_rate
        self.collate = collate
        self.notes, self.earlier = dict(notes or {}), dict(earlier or {})
        self.seen: dict[str, list[Sample]] = {}
        self.taken: dict[str, int | None] = {}
        self.losses: dict[str, Loss] = {}
        self.curves: dict[str, list[float]] = {}

    def fit(
        self, phase: str, samples: Sequence[Sample], loss: Loss, steps: int | None = None
    ) -> None:
        self.seen[phase], self.taken[phase], self.losses[phase] = list(samples), steps, loss
        self.curves[phase] = []
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=0.0)
        stream = cycle(samples)
        for _ in range(steps or self.steps):
            inputs = self._batch(list(islice(stream, 4)), answers=True)
            optimizer.zero_grad()
            value = loss(self.module, inputs, float((inputs["labels"] != -100).sum()))
            value.backward()
            self.curves[phase].append(value.item())
            optimizer.step()
        optimizer.zero_grad()

    def map(
        self,
        phase: str,
        samples: Sequence[Sample],
        compute: Callable[[Inputs], Tensor],
        *,
        answers: bool = False,
        first: bool = False,
    ) -> list[Tensor]:
        self.seen[phase] = list(samples)
        batches = [samples[i : i + 5] for i in range(0, len(samples), 5)]
        return [compute(self._batch(b, answers=answers)).float().cpu() for b in batches]

    def total(
        self, phase: str, samples: Sequence[Sample], compute: Callable[[Inputs], Tensor]
    ) -> Tensor:
        self.seen[phase] = list(samples)
        parts = [compute(self._batch([s], answers=True)) for s in samples]
        return torch.stack(parts).sum(0)

    def _batch(self, samples: Sequence[Sample], *, answers: bool) -> dict[str, Tensor]:
        device = next(self.module.parameters()).device
        batch = self.collate(samples, answers=answers)
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def once(self, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        return make()

    def recall(self, task: str) -> Sequence[Sample]:
        return self.earlier[task]

    def noted(self, name: str) -> Any:
        return self.notes.get(name)

    def note(self, name: str, value: Any) -> Any:
        self.notes[name] = json.loads(json.dumps(value))
        return self.notes[name]
