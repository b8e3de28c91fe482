"""What becomes of a stream's test questions when people ask them in their own ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from cmoe.common.instructions import Instructions, lacking
from cmoe.data.batches import Collator, slices
from cmoe.data.paraphrases import NATURAL, Paraphraser, instructions_of
from cmoe.data.samples import Sample, Task
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.routers import BASE
from cmoe.tasks.registry import scored
from cmoe.tasks.scorer import Mode, Target


@dataclass(frozen=True)
class Asked:
    """What comes of one way of asking; percent, means over tasks.

    Attributes:
        way: `official`, or one of `NATURAL`.
        located: Samples whose task is the likeliest.
        unknown: Samples that no task claims.
        score: Of the answers that a service gives: of the located task, or of the base where none
            claims the sample and the model rejects such.
        told: Of the answers of the sample's own task.
    """

    way: str
    located: float
    unknown: float
    score: float
    told: float


def asked_naturally(
    model: GrowingVLM,
    collator: Collator,
    tasks: Mapping[str, Task],
    instructions: Sequence[Instructions | None],
    targets: Mapping[str, Mapping[str, Target]],
    mode: Mode,
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[Asked]:
    """The official way, then each natural one.

    Args:
        model: That has learned the tasks.
        collator: Of its base.
        tasks: By name.
        instructions: Of the model's tasks, put around the questions that have none, as a service
            does.
        targets: By task and sample, as `stream_targets` gives them.
        mode: Of scoring.
        batch_size: Samples a pass.
        max_new_tokens: Of an answer at most.
    """
    words = {name: Paraphraser(instructions_of(task.train)) for name, task in tasks.items()}
    for way in ("official", *NATURAL):
        sums = [0.0] * 4
        for name, task in tasks.items():
            samples = list(task.test)
            if way != "official":
                samples = [replace(s, text=words[name].asked(s.text, way)) for s in samples]
            found = _answered(
                model, collator, name, samples, instructions, batch_size, max_new_tokens
            )
            wanted = [targets[name][sample.id] for sample in samples]
            figures = [
                100 * fmean(right for right, _, _, _ in found),
                100 * fmean(unknown for _, unknown, _, _ in found),
                scored(task, mode, [said for _, _, said, _ in found], wanted).figure,
                scored(task, mode, [said for _, _, _, said in found], wanted).figure,
            ]
            sums = [total + figure for total, figure in zip(sums, figures, strict=True)]
        yield Asked(way, *(total / len(tasks) for total in sums))


def _answered(
    model: GrowingVLM,
    collator: Collator,
    task: str,
    samples: list[Sample],
    instructions: Sequence[Instructions | None],
    batch_size: int,
    max_new_tokens: int,
) -> list[tuple[bool, bool, str, str]]:
    """Of each sample: whether it is located right, whether it is unknown, what is said to it by
    who claims it, and what its own task says.
    """
    own = model.tasks.index(task)

    def said(some: Sequence[Sample], by: tuple[int, ...]) -> list[str]:
        asked = [_instructed(s, instructions, t) for s, t in zip(some, by, strict=True)]
        inputs = _moved(collator.prompts(asked), model.device)
        new = model.generate(inputs, by, max_new_tokens=max_new_tokens, do_sample=False)
        return collator.answers(new.sequences, inputs["input_ids"].shape[1])

    found: list[tuple[bool, bool, str, str]] = []
    for cut in slices(len(samples), batch_size):
        some = samples[cut.start : cut.stop]
        location = model.locate(_moved(collator.prompts(some), model.device))
        told, claimed = (own,) * len(some), model.claimed(location)
        answers = {by: said(some, by) for by in {claimed, told}}  # often the same
        right = (location.tasks == own).tolist()
        unknown = location.unknown.tolist()
        found += zip(right, unknown, answers[claimed], answers[told], strict=True)
    return found


def _instructed(sample: Sample, instructions: Sequence[Instructions | None], task: int) -> Sample:
    """A sample as a service asks it of the task that answers."""
    own = None if task == BASE else instructions[task]
    opening, ending = lacking(sample.text, own, instructions)
    return replace(sample, text=f"{opening}{sample.text}{ending}")


def _moved(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}
