"""Operations of a run: of a sample by what is done with it, and of a whole task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cmoe.config.tree import RunConfig
from cmoe.experiments.planning.memory import checkpointed
from cmoe.experiments.planning.samples import Samples
from cmoe.experiments.planning.sizes import (
    Shape,
    one_adapter,
    probes,
    tokens,
    widths_of,
)
from cmoe.modeling.settings import slots

ANSWERED = 3  # times that a test sample is answered: by the base, before its task, and after it


@dataclass(frozen=True)
class Operations:
    """Operations of one sample; two per weight that a token meets, and attention's own.

    Attributes:
        forward: A pass with its logits.
        training: The same with its backward pass.
        feature: The locator's pass, up to its layer.
        answer: Prompt and answer, at its longest.
    """

    forward: float
    training: float
    feature: float
    answer: float


def operations(config: RunConfig, shape: Shape, growth: Sequence[Mapping[int, int]]) -> Operations:
    """What a sample of the last task of a growth takes."""
    length = tokens(config, shape)
    base = shape.flops + 4 * length * shape.width * shape.layers  # attention meets all tokens twice
    own = adapter_flops(config, shape, growth)
    head, vision = 2 * shape.width * shape.vocabulary, 2 * shape.vision * shape.image_tokens
    again = checkpointed(config, shape) / shape.layers
    reached = shape.layers if config.locator.layer < 0 else config.locator.layer
    locates = config.entry.locates
    return Operations(
        forward=length * (base + own + head) + vision,
        # Frozen weights take the gradient of their inputs alone, experts that of weights, too. The
        # vision tower needs none.
        training=length * ((2 + again) * base + (3 + again) * own + 2 * head) + vision,
        feature=locates * (length * base * reached / shape.layers + vision),
        answer=length * (base + own)
        + config.evaluation.max_new_tokens * (base + own + head)
        + vision,
    )


def adapter_flops(config: RunConfig, shape: Shape, growth: Sequence[Mapping[int, int]]) -> int:
    """Operations per token that the last task adds, as the methods' `flops_per_token`.

    At worst each task builds on the one before it, if it builds on any.
    """
    if one_adapter(config):
        return 2 * config.lora.rank * widths_of(shape.linears)
    experts, total = config.experts, 0
    at_work = growth if experts.build_on == "nearest" else growth[-1:]
    for layer, maps in enumerate(shape.maps):
        count = sum(grown.get(layer, 0) for grown in growth)
        always = sum(grown.get(layer, 0) for grown in at_work)
        used = slots(count, always if experts.gates == "residual" else 0, experts.top_k)
        adapters = sum(grown.get(layer, 0) > 0 for grown in at_work)
        total += 2 * (used * experts.rank * widths_of(maps) + count * shape.width)
        total += 2 * adapters * experts.attention * widths_of(shape.attention[layer])
    return total


@dataclass(frozen=True)
class Work:
    """Operations of a task by what is done."""

    probe: float
    train: float
    locate: float
    answer: float


def work(
    config: RunConfig, shape: Shape, growth: Sequence[Mapping[int, int]], samples: Samples
) -> Work:
    """What learning and answering the last task of a growth takes."""
    each = operations(config, shape, growth)
    step = config.training.global_batch * each.training
    probe = 0.0
    if probes(config) and len(growth) > 1:
        share = min(max(1, round(config.probe.fraction * samples.train)), config.probe.max_samples)
        passes = 1 + config.probe.experts * (shape.layers + 1) / 2  # see CMoE.learning_flops
        gains = min(config.probe.gain_samples, share) * passes
        probe = config.probe.steps * step + (share + gains) * each.forward
    return Work(
        probe=probe,
        train=config.training.steps_for(samples.train) * step,
        locate=(1 + config.locator.paraphrases) * samples.train * each.feature,
        answer=(samples.test or 0) * (ANSWERED * each.answer + each.feature),
    )
