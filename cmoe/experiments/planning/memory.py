"""Memory of a GPU by phase and part.

Bytes of weights, experts and optimizer follow how `training.engine` sets DeepSpeed up; activations
are an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cmoe.config.tree import RunConfig
from cmoe.experiments.planning.sizes import (
    Added,
    Shape,
    added,
    decoder_bytes,
    element_size,
    most_trained,
    one_adapter,
    tokens,
    unpacked_bytes,
    worst_growth,
)
from cmoe.training.engine import BUCKET

GATHERED = 1_000_000_000  # elements gathered at once under ZeRO 3: `stage3_max_live_parameters`
# A task's features at once while its locator entry is fitted: as gathered, split into training and
# held-out ones, centred, standardised.
FEATURE_COPIES = 4
PARTS = (
    "weights",
    "experts",
    "gradients",
    "optimizer",
    "activations",
    "KV cache",
    "locator",
    "DeepSpeed's buffers",
)


@dataclass(frozen=True)
class Memory:
    """Bytes that one GPU holds in a phase, by part."""

    phase: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def memory(config: RunConfig, shape: Shape, samples: int) -> tuple[Memory, ...]:
    """What a GPU holds in every phase, at its worst in the stream's last task.

    Args:
        samples: Training samples of the largest task.
    """
    size, zero = element_size(config), config.training.zero
    sharded = 1 / config.cluster.workers if zero == 3 else 1
    tasks = added(config, shape, worst_growth(config, shape))
    bank = _bank(config, shape, tasks)
    held: dict[str, float] = {
        "weights": decoder_bytes(config, shape) * sharded + size * shape.vision,
        "experts": size * _resident(config, tasks),
        "locator": bank,
        "DeepSpeed's buffers": size * min(shape.decoder, GATHERED) if zero == 3 else 0,
    }
    batch = config.evaluation.batch_size * tokens(config, shape)
    answers = config.evaluation.batch_size * config.evaluation.max_new_tokens
    length, unpacked = tokens(config, shape), unpacked_bytes(config, shape)
    passing = size * batch * (4 * shape.width + 3 * _inner(shape)) + unpacked
    if config.model.attention == "eager":
        passing += shape.heads * batch * length * (2 * size + 4)  # and in float32, and cast again
    logits = batch * shape.vocabulary * (size + 8)  # and in float32, and their logarithms
    cache = size * shape.cached
    wide = 8 if config.locator.score == "mahalanobis" else 4  # bytes of a feature's number
    fitted = wide * samples * shape.width * FEATURE_COPIES if bank else 0
    phases: dict[str, dict[str, float]] = {
        # Every GPU loads the whole base before ZeRO 3 shards it.
        "loading": {"weights": decoder_bytes(config, shape) + size * shape.vision},
        "training": held | _training(config, shape, tasks, held["DeepSpeed's buffers"]),
        "measuring": held | {"activations": max(passing, logits), "KV cache": cache * batch},
        "locating": held | {"locator": bank + fitted},
        "answering": held | {"activations": passing, "KV cache": cache * (batch + answers)},
    }
    return tuple(Memory(name, parts) for name, parts in phases.items())


def _training(
    config: RunConfig, shape: Shape, tasks: Sequence[Added], gathered: float
) -> dict[str, float]:
    """What differs while a task is trained."""
    size, zero = element_size(config), config.training.zero
    trained = most_trained(config, shape, worst_growth(config, shape))
    share = 1 / config.cluster.workers if zero else 1
    earlier = _resident(config, tasks) - tasks[-1].trained
    # ZeRO copies its shares of the parameters to float32, also from float32.
    master = 0 if size == 4 and zero == 0 else 4
    return {
        "experts": size * (earlier + trained * (share if zero == 3 else 1)),
        "gradients": trained * _gradient_bytes(size, zero, share),
        "optimizer": trained * (master + 8) * share,
        "activations": training_activations(config, shape) + unpacked_bytes(config, shape),
        "DeepSpeed's buffers": gathered + (size * min(trained, BUCKET) if zero else 0),
    }


def _gradient_bytes(size: int, zero: int, share: float) -> float:
    """Bytes of a trained parameter's gradients: those of a micro-batch, and their fp32 sums.

    From ZeRO 2 on a micro-batch's are reduced as they come, and only this worker's sums stay.

    Args:
        size: Bytes of the parameter.
        zero: The stage.
        share: Of the parameters that are this worker's.
    """
    if zero == 0:
        return 4  # they are summed where they are
    if zero == 1:
        # DeepSpeed's optimizer for bf16 has the sums of all parameters on each worker.
        return size + 4 * (share if size == 4 else 1)
    return 4 * share


def training_activations(config: RunConfig, shape: Shape) -> float:
    """Bytes that a micro-batch leaves for its backward pass, at their peak.

    In each layer what attention takes and gives, the FFN's gate, its activation, the other factor
    and their product, the inputs of two norms in float32, and what experts multiply; in the end the
    logits, their logarithms and their gradient, at worst of every place: only answers need them.
    Attention that is computed eagerly also leaves its weights, of every pair of tokens.
    """
    size, batch = element_size(config), config.training.micro_batch * tokens(config, shape)
    if one_adapter(config):
        rows = 2 * len(shape.linears) / shape.layers * config.lora.rank
    else:
        experts = sum(sum(grown.values()) for grown in worst_growth(config, shape)) / shape.layers
        rows = 2 * len(shape.maps[0]) * experts * config.experts.rank
    layer = batch * (size * (4 * _inner(shape) + 4 * shape.width + rows) + 8 * shape.width)
    if config.model.attention == "eager":
        # In float32, and cast where the rest is in less.
        layer += shape.heads * batch * tokens(config, shape) * (4 + (size if size < 4 else 0))
    logits = 12 * batch * shape.vocabulary
    again = checkpointed(config, shape)
    inputs = size * batch * shape.width * again
    # The others are done with, and so are the logits, before a layer is computed again.
    return max(inputs + layer * (shape.layers - again) + logits, inputs + layer)


def checkpointed(config: RunConfig, shape: Shape) -> int:
    """How many of the layers are recomputed."""
    if not config.training.gradient_checkpointing:
        return 0
    return min(config.training.checkpointed_layers or shape.layers, shape.layers)


def _resident(config: RunConfig, tasks: Sequence[Added]) -> int:
    """Scalars of the tasks that are in the network: all of them, or the one adapter."""
    return sum(task.trained for task in (tasks[-1:] if one_adapter(config) else tasks))


def _bank(config: RunConfig, shape: Shape, tasks: Sequence[Added]) -> float:
    """Bytes of the locator's bank."""
    if config.entry.locates and config.locator.score == "mahalanobis":
        return 16 * shape.width**2  # one scatter for all tasks and its root, in float64
    return 4 * sum(task.locator for task in tasks)


def _inner(shape: Shape) -> int:
    return max(out for _, out in shape.maps[0])


def largest_micro_batch(
    config: RunConfig, shape: Shape, samples: int, limit: float, *, checkpointing: bool
) -> int:
    """The largest `training.micro_batch` whose training fits on a GPU; 0 where none does.

    It divides a worker's share of the global batch.

    Args:
        samples: As in `memory`.
        limit: Bytes of a GPU.
        checkpointing: Of the gradients, instead of the run's own setting.
    """
    share = max(1, config.training.global_batch // config.cluster.workers)
    for size in (m for m in range(share, 0, -1) if share % m == 0):
        training = replace(
            config.training,
            micro_batch=size,
            gradient_checkpointing=checkpointing,
            checkpointed_layers=None,
        )
        phases = memory(replace(config, training=training), shape, samples)
        if next(m.total for m in phases if m.phase == "training") <= limit:
            return size
    return 0


def fewest_checkpointed(config: RunConfig, shape: Shape, samples: int, limit: float) -> int | None:
    """Of how many layers activations must be recomputed for training to fit; None if all don't do.

    Arguments as of `largest_micro_batch`.
    """
    for count in range(shape.layers + 1):
        training = replace(
            config.training, gradient_checkpointing=count > 0, checkpointed_layers=count or None
        )
        phases = memory(replace(config, training=training), shape, samples)
        if next(m.total for m in phases if m.phase == "training") <= limit:
            return count
    return None


@dataclass(frozen=True)
class Remedy:
    """A change of one setting that helps a phase that doesn't fit; `total` is its bytes then."""

    phase: str
    change: str
    total: float


def remedies(config: RunConfig, shape: Shape, samples: int, limit: float) -> Iterator[Remedy]:
    """What would make every phase fit, the most effective first; if nothing alone, what helps most.

    Args:
        samples: As in `memory`.
        limit: Bytes of a GPU.
    """
    for before in memory(config, shape, samples):
        if before.total <= limit:
            continue
        found = []
        for steps in _changes(config, samples):
            tried = []
            for change, changed, count in steps:
                (after,) = (m for m in memory(changed, shape, count) if m.phase == before.phase)
                tried.append(Remedy(before.phase, change, after.total))
            mildest = (r for r in tried if r.total <= limit)
            found += [next(mildest, tried[-1])] if tried else []
        found = sorted((r for r in found if r.total < before.total), key=lambda r: r.total)
        yield from [r for r in found if r.total <= limit] or found[:1]


Change = tuple[str, RunConfig, int]


def _changes(config: RunConfig, samples: int) -> Iterator[list[Change]]:
    """For every setting that memory depends on its changes, the mildest first.

    Each has its name, the run with it, and the samples of that run's largest task.
    """
    training, evaluation = config.training, config.evaluation

    def trained(name: str, values: Iterable[Any]) -> list[Change]:
        return [
            (
                f"training.{name} {json.dumps(value)}",
                replace(config, training=replace(training, **{name: value})),
                samples,
            )
            for value in values
        ]

    if config.model.dtype == "float32":
        half = replace(config, model=replace(config.model, dtype="bfloat16"))
        yield [("model.dtype bfloat16", half, samples)]
    if config.model.quantization is None and training.zero < 3:
        models = [(kind, replace(config.model, quantization=kind)) for kind in ("int8", "nf4")]
        yield [(f"model.quantization {k}", replace(config, model=m), samples) for k, m in models]
    whole = config.entry.whole_weights or config.model.quantization is not None
    yield trained("zero", range(training.zero + 1, 3 if whole else 4))
    yield trained("gradient_checkpointing", [] if training.gradient_checkpointing else [True])
    share = training.global_batch // config.cluster.workers
    yield trained("micro_batch", (m for m in _halves(training.micro_batch) if not share % m))
    yield [
        (
            f"evaluation.batch_size {batch}",
            replace(config, evaluation=replace(evaluation, batch_size=batch)),
            samples,
        )
        for batch in _halves(evaluation.batch_size)
    ]
    yield [(f"data.train_samples {count}", config, count) for count in _halves(samples)]


def _halves(number: int) -> Iterator[int]:
    while number > 1:
        number //= 2
        yield number
