"""Parameters: the base's, counted on torch's meta device, and what the tasks add to it.

The worst tasks are counted: every layer grows as far as the budgets allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from cmoe.config.tree import RunConfig
from cmoe.methods.method import decoder_flops
from cmoe.modeling.base import (
    find_attentions,
    find_decoder,
    find_ffns,
    find_layers,
    find_optional,
)
from cmoe.modeling.locator import VAE
from cmoe.modeling.settings import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXT_TOKENS = 128  # of a question with its answer and the chat template: ours
NF4_BLOCK = 64  # weights that share a scale
IMAGE_TOKENS = 576  # of a picture, where the base's configuration doesn't say: LLaVA-1.5's


@dataclass(frozen=True)
class Shape:
    """A base as far as a plan needs it.

    Attributes:
        decoder: Parameters that ZeRO 3 shards: the decoder and the output embeddings.
        vision: All others: the vision tower, its projector.
        maps: Per layer the inputs and outputs of its FFN's linear maps.
        attention: Per layer those of its attention's; nothing where none are to gain adapters.
        linears: Inputs and outputs of all of the decoder's linear maps.
        width: Of the hidden state.
        vocabulary: Of the output embeddings.
        cached: Elements that a token leaves in the KV cache.
        flops: Of the decoder's layers per token, forward; attention's own aside.
        image_tokens: Of a picture.
        heads: Of a layer's attention.
    """

    decoder: int
    vision: int
    maps: tuple[tuple[tuple[int, int], ...], ...]
    attention: tuple[tuple[tuple[int, int], ...], ...]
    linears: tuple[tuple[int, int], ...]
    width: int
    vocabulary: int
    cached: int
    flops: int
    image_tokens: int
    heads: int

    @property
    def layers(self) -> int:
        return len(self.maps)


def shape_of(base: PreTrainedModel, *, attention: bool = False) -> Shape:
    """The shape of a base, with weights or on the meta device.

    Args:
        base: Not wrapped.
        attention: Whether its attention is to gain adapters.

    Raises:
        UnsupportedModelError: It has no FFNs that can grow, or no such attention.
    """
    text = base.config.get_text_config()
    optional = [parent.get_submodule(name) for parent, name in find_optional(base)]
    vision = sum(p.numel() for part in optional for p in part.parameters())
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    return Shape(
        decoder=sum(p.numel() for p in base.parameters()) - vision,
        vision=vision,
        maps=tuple(tuple(_sizes(site.module)) for site in find_ffns(base)),
        attention=tuple(tuple(_sizes(site.module)) for site in find_attentions(base))
        if attention
        else ((),) * len(find_layers(base)),
        linears=tuple(_sizes(find_decoder(base))),
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        cached=2 * len(find_layers(base)) * kept * width,
        flops=decoder_flops(base),
        image_tokens=getattr(base.config, "image_seq_length", None) or IMAGE_TOKENS,
        heads=heads,
    )


def _sizes(module: nn.Module) -> Iterator[tuple[int, int]]:
    for m in module.modules():
        if isinstance(m, nn.Linear):
            yield m.in_features, m.out_features


@dataclass(frozen=True)
class Added:
    """Scalars of a task's primitive, as `Primitive.parameter_counts` gives them."""

    experts: int
    routers: int
    locator: int

    @property
    def trained(self) -> int:
        return self.experts + self.routers


def worst_growth(config: RunConfig, shape: Shape) -> tuple[Mapping[int, int], ...]:
    """Per task layer -> new experts, if all layers pass the probe's threshold."""
    probe, per_layer = config.probe, config.experts.per_layer
    every = dict.fromkeys(range(shape.layers), per_layer)
    if not probe.enabled:
        return (every,) * len(config.data.tasks)
    count = probe.experts if probe.count == "per_probe" else per_layer
    later: dict[int, int] = {}
    spent, limit = 0, probe.max_added_parameters
    for layer, maps in enumerate(shape.maps):
        spent += count * (config.experts.rank * widths_of(maps) + shape.width)
        spent += config.experts.attention * widths_of(shape.attention[layer])
        if len(later) == probe.max_layers or (limit is not None and spent > limit):
            break
        later[layer] = count
    return (every, *[later] * (len(config.data.tasks) - 1))


def one_adapter(config: RunConfig) -> bool:
    """Whether one adapter on all linear maps serves all tasks; if not, every task adds experts."""
    return config.entry.formula == "one adapter"


def probes(config: RunConfig) -> bool:
    """Whether tasks behind the first are probed."""
    return config.entry.formula == "probed experts" and config.probe.enabled


def added(
    config: RunConfig, shape: Shape, growth: Sequence[Mapping[int, int]]
) -> tuple[Added, ...]:
    """What each task adds, in order, if they grow so."""
    if one_adapter(config):
        return (Added(config.lora.rank * widths_of(shape.linears), 0, 0),) * len(growth)
    tasks, older = [], [0] * shape.layers
    for grown in growth:
        older = [n + grown.get(layer, 0) for layer, n in enumerate(older)]
        widths = sum(grown.get(layer, 0) * widths_of(m) for layer, m in enumerate(shape.maps))
        adapted = sum(widths_of(shape.attention[layer]) for layer, count in grown.items() if count)
        experts = config.experts.rank * widths + config.experts.attention * adapted
        routers = sum(older) * shape.width
        tasks.append(Added(experts, routers, _entry(config, shape.width)))
    return tuple(tasks)


def most_trained(config: RunConfig, shape: Shape, growth: Sequence[Mapping[int, int]]) -> int:
    """The most parameters that are trained at once: a task's, or its probes."""
    trained = [task.trained for task in added(config, shape, growth)]
    if probes(config) and len(growth) > 1:
        everywhere = dict.fromkeys(range(shape.layers), config.probe.experts)
        trained.append(added(config, shape, [*growth[:-1], everywhere])[-1].trained)
    return max(trained)


def widths_of(maps: Sequence[tuple[int, int]]) -> int:
    return sum(inputs + outputs for inputs, outputs in maps)


def _entry(config: RunConfig, width: int) -> int:
    """Scalars of one task in the locator's bank."""
    locator = config.locator
    if locator.score == "mahalanobis":
        return width + width**2 + 2  # mean and scatter, count and limit
    with torch.device("meta"):
        vae = VAE(width, locator.hidden, locator.latent)
    # The half of the code that gives its variance only serves training; mean and deviation are kept
    # of the features and of the error, and two limits.
    variance = locator.latent * (locator.hidden + 1)
    return sum(p.numel() for p in vae.parameters()) - variance + 2 * width + 4


def element_size(config: RunConfig) -> int:
    """Bytes of a weight or an activation."""
    dtype: torch.dtype = getattr(torch, config.model.dtype)
    return dtype.itemsize


def stored(config: RunConfig, tasks: Sequence[Added]) -> int:
    """Bytes of the store's tensors; the locator's are float32."""
    return sum(element_size(config) * task.trained + 4 * task.locator for task in tasks)


def decoder_bytes(config: RunConfig, shape: Shape) -> float:
    """Bytes of the decoder's weights, and of the output embeddings'."""
    size, quantization = element_size(config), config.model.quantization
    if quantization is None:
        return size * shape.decoder
    maps = sum(inputs * outputs for inputs, outputs in shape.linears)
    packed = sum(_packed(quantization, *sizes) for sizes in shape.linears)
    return size * (shape.decoder - maps) + packed


def _packed(quantization: Quantization, inputs: int, outputs: int) -> float:
    """Bytes of a quantised map: 4.5 bits a weight, or 8 and a scale for each output."""
    count = inputs * outputs
    if quantization == "nf4":
        return count / 2 + 4 * -(-count // NF4_BLOCK)
    return count + 4 * outputs


def unpacked_bytes(config: RunConfig, shape: Shape) -> int:
    """Bytes of the largest quantised map while it works: one at a time is whole."""
    if config.model.quantization is None:
        return 0
    return element_size(config) * max(inputs * outputs for inputs, outputs in shape.linears)


def tokens(config: RunConfig, shape: Shape) -> int:
    """Tokens of a sample: its picture's and an assumed text."""
    return min(shape.image_tokens + TEXT_TOKENS, config.data.max_length or 2**31)
