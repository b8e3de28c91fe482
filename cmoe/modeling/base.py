"""The frozen base: its decoder layers, their FFNs, and its features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from cmoe.common.errors import KnownError
from cmoe.modeling.settings import Pooling

Context = AbstractContextManager[None]

LAYERS_NAMES = ("layers", "h", "blocks")
ATTENTION_NAMES = ("self_attn", "self_attention", "attention", "attn")
FFN_NAMES = ("mlp", "feed_forward", "ffn")
PLACEHOLDER_NAMES = ("image_token_id", "video_token_id")


# Elements of one tensor that go into the fingerprint. Whole tensors of a small model; of a
# 7B model about 90 MB in all, read in a fraction of a second.
FINGERPRINT_ELEMENTS = 65_536


DIGEST = "cmoe_digest"
"""Attribute of a quantised base: its digest, which was taken before."""


class UnsupportedModelError(KnownError, ValueError):
    """A model in which no decoder layers with linear FFNs were found."""


@dataclass(frozen=True)
class Site:
    """Where one decoder layer keeps a part of itself: its FFN, or its attention.

    Attributes:
        layer: The decoder layer.
        name: Attribute of the layer that holds the part.
        maps: Dotted names, inside the part, of its linear maps in order of definition.
    """

    layer: nn.Module
    name: str
    maps: tuple[str, ...]

    @property
    def module(self) -> nn.Module:
        return self.layer.get_submodule(self.name)


def find_decoder(model: nn.Module) -> nn.Module:
    """The language decoder of a vision-language model: the module that owns the layers."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else model
    if not any(isinstance(getattr(decoder, n, None), nn.ModuleList) for n in LAYERS_NAMES):
        raise UnsupportedModelError(
            f"{type(model).__name__}: its decoder {type(decoder).__name__} has no list of layers; "
            f"looked for {', '.join(LAYERS_NAMES)}"
        )
    return decoder


def find_optional(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The largest parts of a model that a pass without pictures leaves out: parent and name.

    Everything but the decoder and the output embeddings: the vision tower, its projector.
    """
    heads = [find_decoder(model)]
    get_head = getattr(model, "get_output_embeddings", None)
    if callable(get_head) and (head := get_head()) is not None:
        heads.append(head)
    always = {id(m) for head in heads for m in head.modules()}
    optional: list[tuple[nn.Module, str]] = []

    def visit(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if id(child) in always:
                continue
            if any(id(m) in always for m in child.modules()):
                visit(child)
            else:
                optional.append((parent, name))

    visit(model)
    return optional


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers, in order."""
    decoder = find_decoder(model)
    lists = (getattr(decoder, n, None) for n in LAYERS_NAMES)
    return next(x for x in lists if isinstance(x, nn.ModuleList))


def find_ffns(model: nn.Module) -> list[Site]:
    """The FFN of every decoder layer.

    An FFN fits if linear maps hold all of its parameters: a router or fused expert tensors
    inside would mean that tokens leave the order in which experts are gated.

    Raises:
        UnsupportedModelError: A layer has none; names what was looked for and what was found.
    """
    return _sites(model, FFN_NAMES, "FFN made of linear maps alone", _made_of_maps)


def find_attentions(model: nn.Module) -> list[Site]:
    """The attention of every decoder layer, which has linear maps.

    Raises:
        UnsupportedModelError: A layer has none; names what was looked for and what was found.
    """
    what = "attention with linear maps (experts.attention 0 leaves it alone)"
    return _sites(model, ATTENTION_NAMES, what, lambda _: True)


def _made_of_maps(ffn: nn.Module) -> bool:
    """Whether linear maps hold all parameters."""
    held = {id(p) for m in ffn.modules() if isinstance(m, nn.Linear) for p in m.parameters()}
    return held >= {id(p) for p in ffn.parameters()}


def _sites(
    model: nn.Module, names: Sequence[str], what: str, fits: Callable[[nn.Module], bool]
) -> list[Site]:
    """Of every layer the first part of one of the names that has linear maps and fits."""
    found = []
    for index, layer in enumerate(find_layers(model)):
        parts = ((name, getattr(layer, name, None)) for name in names)
        sites = (
            Site(layer, name, maps)
            for name, part in parts
            if isinstance(part, nn.Module) and (maps := _linear_maps(part)) and fits(part)
        )
        if (site := next(sites, None)) is None:
            children = ", ".join(f"{n} ({type(m).__name__})" for n, m in layer.named_children())
            raise UnsupportedModelError(
                f"{type(model).__name__}: decoder layer {index} ({type(layer).__name__}) has no "
                f"{what}; looked for {', '.join(names)}, found {children}"
            )
        found.append(site)
    return found


def _linear_maps(part: nn.Module) -> tuple[str, ...]:
    """Their dotted names, in order of definition."""
    return tuple(name for name, m in part.named_modules() if isinstance(m, nn.Linear))


def fingerprint(model: nn.Module) -> str:
    """A digest that tells bases apart, the same in every load dtype and on every device.

    SHA-256 over each parameter's name, shape and up to 65,536 evenly spaced elements, rounded
    to bfloat16. A single altered weight of a larger tensor can go unnoticed; another checkpoint
    can't.

    A quantised base has the digest of its weights before, with the quantisation's name behind it.
    """
    if (taken := getattr(model, DIGEST, None)) is not None:
        return str(taken)
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        flat = p.detach().flatten()
        stride = -(-flat.numel() // FINGERPRINT_ELEMENTS) or 1
        sample = flat[::stride].to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(p.shape)}\n".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def quantization_of(digest: str) -> str | None:
    """How the base of a fingerprint is quantised."""
    return digest.partition("-")[2] or None


def count_parameters(module: nn.Module) -> int:
    """How many weights a module has; those that are packed count as what they stand for."""
    maps = [m for m in module.modules() if isinstance(m, nn.Linear)]
    sizes = {id(m.weight): m.in_features * m.out_features for m in maps}
    return sum(sizes.get(id(p), p.numel()) for p in module.parameters())


def compute_dtype(linear: nn.Linear) -> torch.dtype:
    """The dtype that a linear map computes in; a quantised one says it beside its weight."""
    dtype: torch.dtype | None = getattr(linear, "compute_dtype", None)
    return dtype or linear.weight.dtype


def arguments(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as a base takes it, with logits for the places that have labels alone.

    A vocabulary's logits for every place of a prompt would be the largest tensors of a training.

    Args:
        inputs: With `labels` [B, T] of the last T places, or without.
    """
    if "labels" not in inputs:
        return dict(inputs)
    return {"logits_to_keep": inputs["labels"].shape[1], **inputs}


def pooling_weights(inputs: Mapping[str, Tensor], pooling: Pooling, config: Any) -> Tensor:
    """How much each prompt token counts in the feature.

    Args:
        inputs: A batch of prompts (no answers), with `input_ids` [B, S] and, where samples are
            padded on either side, `attention_mask` [B, S].
        pooling: `last` prompt token (the paper's), `mean` over the prompt, or `mean_text` over
            its text tokens alone.
        config: The base's configuration; names the tokens that stand for pictures.

    Returns:
        Weights [B, S], fp32; every row sums to 1.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    attended = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if pooling == "last":
        from_end = attended.flip(-1).long().argmax(-1)
        last = ids.shape[-1] - 1 - from_end
        return nn.functional.one_hot(last, ids.shape[-1]).float()
    if pooling == "mean_text":
        for name in PLACEHOLDER_NAMES:
            token = getattr(config, name, None)
            if token is not None:
                attended = attended & (ids != token)
    weights = attended.float()
    return weights / weights.sum(-1, keepdim=True).clamp_min(1.0)


def pooled(hidden_bsd: Tensor, weights_bs: Tensor) -> Tensor:
    """The features [B, d], fp32, of hidden states and pooling weights."""
    return torch.bmm(weights_bs.unsqueeze(1), hidden_bsd.float()).squeeze(1)


def hidden_state(model: nn.Module, layer: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """The state [B, S, d] that enters a layer, as in `watch_hidden_state`.

    The pass ends there: what comes behind it isn't computed.
    """
    states: list[Tensor] = []

    def stop(hidden_bsd: Tensor) -> None:
        states.append(hidden_bsd)
        raise _ReachedError

    with watch_hidden_state(model, layer, stop), suppress(_ReachedError):
        model(**inputs, use_cache=False)
    return states[0]


def features(
    model: nn.Module, layer: int, pooling: Pooling, inputs: Mapping[str, Tensor]
) -> Tensor:
    """The prompts' features [B, d], fp32, of the state that enters a layer."""
    weights_bs = pooling_weights(inputs, pooling, model.config)
    return pooled(hidden_state(model, layer, inputs), weights_bs)


def keep_layers(model: nn.Module, count: int) -> None:
    """Leave a decoder its first layers alone, for passes that end before the last of them.

    Args:
        model: Changed in place.
        count: Of the layers that stay; as many as there are, or more, change nothing.
    """
    del find_layers(model)[count:]


class _ReachedError(Exception):
    """Ends a forward pass at the layer that it was for."""


def freeze(model: nn.Module) -> None:
    """No weight learns, and no dropout changes what the model says."""
    model.requires_grad_(False)
    model.eval()


def checkpoint_layers(
    model: nn.Module,
    context_fn: Callable[[], tuple[Context, Context]] = noop_context_fn,
    count: int | None = None,
) -> None:
    """Recompute decoder layers in the backward pass, once and for all.

    The model's own switch for it works in training mode alone, which turns dropout on as well.

    Args:
        model: Changed in place.
        context_fn: Makes the contexts of a layer's forward pass and of its recomputation.
        count: The first so many of them; None takes all.
    """
    for layer in find_layers(model)[:count]:
        layer.forward = partial(_recomputed, layer.forward, context_fn)


def _recomputed(
    forward: Callable[..., Any],
    context_fn: Callable[[], tuple[Context, Context]],
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if "past_key_values" in kwargs:
        kwargs["past_key_values"] = None  # the recomputation would write into it again
    # Nothing is drawn in evaluation mode: no random state has to come back.
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=context_fn,
        **kwargs,
    )


@contextmanager
def resuming(model: nn.Module) -> Iterator[Callable[[int], None]]:
    """Let passes over the same inputs begin at a layer, with what the first pass made below it.

    The first pass inside computes all layers. What is kept of it is one state [B, S, d] a layer.

    Yields:
        What is told the layer at which the next pass begins. All that is below must be as it was
        in the first pass: then the bits are those of a whole pass.
    """
    layers = find_layers(model)
    made: dict[int, Any] = {}
    begin = 0

    def start_at(layer: int) -> None:
        nonlocal begin
        begin = layer

    def forward(index: int, whole: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if index < begin:
            return made[index]
        out = whole(*args, **kwargs)
        made.setdefault(index, out)
        return out

    before = [layer.__dict__.get("forward") for layer in layers]
    for index, layer in enumerate(layers):
        layer.forward = partial(forward, index, layer.forward)
    try:
        yield start_at
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


@contextmanager
def watch_hidden_state(
    model: nn.Module, layer: int, seen: Callable[[Tensor], None]
) -> Iterator[None]:
    """Call `seen(hidden_bsd)` with the state that enters decoder layer `layer`.

    `layer == L` means the decoder's output, behind its final norm: the paper's `F_end`.
    """
    layers = find_layers(model)
    if layer < len(layers):

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen(args[0] if args else kwargs["hidden_states"])

        handle = layers[layer].register_forward_pre_hook(before, with_kwargs=True)
    else:

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen(output[0])

        handle = find_decoder(model).register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
