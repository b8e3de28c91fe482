"""What becomes of a stream's test questions when people ask them in their own ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cmoe.data.batches import Collator, slices
from cmoe.data.paraphrases import NATURAL, Paraphraser
from cmoe.data.samples import Sample, Task
from cmoe.modeling.growing import GrowingVLM
from cmoe.tasks.registry import score
from cmoe.tasks.scorers import Mode, Target


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
        targets: By task and sample, as `stream_targets` gives them.
        mode: Of scoring.
        batch_size: Samples a pass.
        max_new_tokens: Of an answer at most.
    """
    words = {name: Paraphraser([s.text for s in task.train]) for name, task in tasks.items()}
    for way in ("official", *NATURAL):
        sums = [0.0] * 4
        for name, task in tasks.items():
            samples = list(task.test)
            if way != "official":
                samples = [replace(s, text=words[name].asked(s.text, way)) for s in samples]
            found = _answered(model, collator, name, samples, batch_size, max_new_tokens)
            wanted = [targets[name][sample.id] for sample in samples]
            rows = [
                [float(right) for right, _, _, _ in found],
                [float(unknown) for _, unknown, _, _ in found],
                score(name, mode, [said for _, _, said, _ in found], wanted),
                score(name, mode, [said for _, _, _, said in found], wanted),
            ]
            sums = [total + sum(row) / len(row) for total, row in zip(sums, rows, strict=True)]
        yield Asked(way, *(100 * total / len(tasks) for total in sums))


def _answered(
    model: GrowingVLM,
    collator: Collator,
    task: str,
    samples: list[Sample],
    batch_size: int,
    max_new_tokens: int,
) -> list[tuple[bool, bool, str, str]]:
    """Of each sample: whether it is located right, whether it is unknown, what is said to it by
    who claims it, and what its own task says.
    """
    own = model.tasks.index(task)
    found: list[tuple[bool, bool, str, str]] = []
    for cut in slices(len(samples), batch_size):
        some = samples[cut.start : cut.stop]
        inputs = {n: t.to(model.device) for n, t in collator.prompts(some).items()}
        location = model.locate(inputs)
        told = (own,) * len(some)
        said: dict[tuple[int, ...], list[str]] = {}
        claimed = model.claimed(location)
        for by in {claimed, told}:  # often the same
            new = model.generate(inputs, by, max_new_tokens=max_new_tokens, do_sample=False)
            said[by] = collator.answers(new.sequences, inputs["input_ids"].shape[1])
        right = (location.tasks == own).tolist()
        unknown = location.unknown.tolist()
        found += zip(right, unknown, said[claimed], said[told], strict=True)
    return found
