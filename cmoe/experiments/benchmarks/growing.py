"""What growing costs: experts, mixed batches, location, and where location is placed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmoe.experiments.benchmarks.timing import compare, milliseconds, peak_bytes, ratio
from cmoe.modeling import experts
from cmoe.modeling.ffn import GrowingFFN
from cmoe.modeling.gates import choose_experts
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.kernels import choice
from cmoe.modeling.locator import VAEBank
from cmoe.modeling.routers import BASE, Routing
from cmoe.modeling.settings import Kernels, LocatorConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = dict[str, Any]

WIDTH, FFN_WIDTH, RANK, VOCABULARY = 1024, 2752, 16, 1024


def experts_of_one_ffn(device: str, dtype: torch.dtype) -> list[Row]:
    """Stacked experts on a frozen Llama-shaped FFN, top-2, against a loop over experts.

    Both ways of computing are timed at every size: the rule that chooses between them rests on
    this table. On a GPU with Triton there is a third: our own kernels, which are `chosen` there.
    """
    rows = []
    for tokens, counts in (
        (256, (2, 4, 8, 16, 64)),
        (8, (4, 16)),
        (1024, (4, 8, 16)),
        (2048, (4, 16)),
    ):
        for count in counts:
            model = _grown([count], layers=range(1), device=device, dtype=dtype)
            hidden = torch.randn(1, tokens, WIDTH, device=device, dtype=dtype)
            seconds = compare(_ways(model, hidden))
            added = {n: ratio(seconds, n, "frozen") - 1 for n in seconds if n != "frozen"}
            rows.append(
                {
                    "tokens": tokens,
                    "experts": count,
                    "frozen ms": milliseconds(seconds["frozen"]),
                    **{f"{n} added": value for n, value in added.items()},
                    "of loop": added["chosen"] / added["loop"],
                    "of sparse loop": added["chosen"] / added["sparse loop"],
                }
            )
    return rows


def _ways(model: GrowingVLM, hidden_bsd: Tensor) -> dict[str, Callable[[], object]]:
    """The first layer's FFN, frozen and with its experts computed in every way."""
    ffn = model.ffns[0]
    routing = Routing((0,), torch.zeros(1, dtype=torch.long, device=hidden_bsd.device))

    def grown(way: str, kernels: Kernels) -> None:
        ffn.use_kernels(kernels)
        with forced(way), model._context.using(routing):
            ffn(hidden_bsd)

    ways: dict[str, Callable[[], object]] = {
        "chosen": partial(grown, "chosen", "auto"),
        "concatenated": partial(grown, "concatenated", "torch"),
        "grouped": partial(grown, "grouped", "torch"),
    }
    if choice.on(hidden_bsd.device, "auto"):
        ways["kernels"] = partial(grown, "chosen", "triton")
    return {
        "frozen": partial(ffn, hidden_bsd),
        **ways,
        "loop": partial(_looped, ffn, hidden_bsd, sparse=False),
        "sparse loop": partial(_looped, ffn, hidden_bsd, sparse=True),
    }


def mixed_batch(device: str, dtype: torch.dtype) -> list[Row]:
    """8 samples of 8 tasks in 8 layers, against one task alone and PEFT's `adapter_names`."""
    from peft import LoraConfig, get_peft_model

    names = [f"task{t}" for t in range(8)]
    grown = {k: _grown([1] * 8, range(8), device, dtype, top_k=k) for k in (1, 2)}
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=r".*mlp\.(gate|up|down)_proj")
    peft = get_peft_model(_base(8, device, dtype), config, adapter_name=names[0])
    for name in names[1:]:
        peft.add_adapter(name, config)
    peft.eval()
    inputs = _prompts(8, 32, device)
    calls: dict[str, Callable[[], object]] = {
        "base": lambda: grown[1](inputs, BASE, logits_to_keep=1),
        "peft, one adapter a sample": lambda: peft(**inputs, adapter_names=names, logits_to_keep=1),
    }
    for k, model in grown.items():
        calls[f"top-{k}, one task"] = partial(model, inputs, names[-1], logits_to_keep=1)
        calls[f"top-{k}, mixed"] = partial(model, inputs, names, logits_to_keep=1)
    seconds = compare(calls)
    rows = []
    for name, times in seconds.items():
        row: Row = {
            "batch": name,
            "ms": milliseconds(times),
            "x base": ratio(seconds, name, "base"),
        }
        top = name.split(",")[0]
        row["x one task"] = ratio(seconds, name, f"{top}, one task") if "mixed" in name else None
        row["x peft"] = ratio(seconds, name, "peft, one adapter a sample")
        rows.append(row)
    return rows


def locating(device: str, dtype: torch.dtype) -> list[Row]:
    """A batch of 16 among up to 1,024 tasks, 128-wide features, against a loop over VAEs."""
    del dtype  # the bank always works in fp32
    rows = []
    entry = VAEBank(replace(LocatorConfig(), steps=1)).fit(torch.randn(64, 128), seed=0)
    features = torch.randn(16, 128, device=device)
    for tasks in (8, 64, 512, 1024):
        bank = VAEBank(LocatorConfig())
        bank.append(*[entry] * tasks)
        alone = []
        for _ in range(tasks):
            one = VAEBank(LocatorConfig())
            one.append({name: t.clone() for name, t in entry.items()})
            one.score(features)
            alone.append(one)
        batched = partial(bank.score, features)
        peak = peak_bytes(batched, device)
        seconds = compare(
            {"batched": batched, "loop": partial(_each_alone, alone, features)}, rounds=15
        )
        rows.append(
            {
                "tasks": tasks,
                "batched ms": milliseconds(seconds["batched"]),
                "loop ms": milliseconds(seconds["loop"]),
                "faster": ratio(seconds, "loop", "batched"),
                "bank MB": tasks * sum(t.nbytes for t in entry.values()) / 1e6,
                "peak MB": peak / 1e6,
            }
        )
    return rows


def _each_alone(banks: list[VAEBank], features_bd: Tensor) -> Tensor:
    return torch.cat([bank.score(features_bd) for bank in banks], dim=1)


def placement(device: str, dtype: torch.dtype) -> list[Row]:
    """Prefill with location against the frozen base's prefill; 8 layers, experts in 4 to 7."""
    base = _base(8, device, dtype)
    inputs = _prompts(8, 32, device)
    calls: dict[str, Any] = {"frozen base": lambda: base(**inputs, logits_to_keep=1)}
    places: tuple[tuple[str, int, Literal["front", "inline"]], ...] = (
        ("inline, middle layer", 4, "inline"),
        ("front, middle layer", 4, "front"),
        ("front, last layer", -1, "front"),
    )
    for name, layer, where in places:
        locator = LocatorConfig(layer=layer, placement=where, steps=1)
        model = _grown([1] * 8, layers=range(4, 8), device=device, dtype=dtype, locator=locator)
        calls[name] = lambda m=model: m(inputs, logits_to_keep=1)
    seconds = compare(calls)
    return [
        {"prefill": name, "ms": milliseconds(times), "x base": ratio(seconds, name, "frozen base")}
        for name, times in seconds.items()
    ]


def _base(layers: int, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A LLaVA with random weights and a Llama-shaped decoder of width 1024."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=FFN_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=8,
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    base: PreTrainedModel = Llava(config).eval()
    nn.Module.to(base, device=device, dtype=dtype)
    return base


def _grown(
    counts: list[int],
    layers: range,
    device: str,
    dtype: torch.dtype,
    locator: LocatorConfig | None = None,
    top_k: int = 2,
) -> GrowingVLM:
    """Tasks that add `counts[t]` experts to each of `layers`."""
    model = GrowingVLM(_base(layers.stop, device, dtype), top_k=top_k, locator=locator)
    for t, count in enumerate(counts):
        model.grow(f"task{t}", dict.fromkeys(layers, count), rank=RANK, lora_alpha=2 * RANK, seed=t)
        entry: Mapping[str, Tensor] = {}
        if locator is not None:
            entry = model.bank.fit(torch.randn(64, WIDTH), seed=t)
        model.commit(entry)
    return model.eval()


def _prompts(batch: int, length: int, device: str) -> dict[str, Tensor]:
    ids = torch.randint(4, VOCABULARY, (batch, length), device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@contextmanager
def forced(way: str) -> Iterator[None]:
    """Compute experts `concatenated` or `grouped` at every size, or in the `chosen` way."""
    before = experts.GROUPED_FROM
    if way == "concatenated":
        experts.GROUPED_FROM = {}
    elif way == "grouped":
        experts.GROUPED_FROM = dict.fromkeys(("cpu", "cuda"), experts.GroupedFrom(0, 0))
    try:
        yield
    finally:
        experts.GROUPED_FROM = before


def _looped(ffn: GrowingFFN, hidden_bsd: Tensor, *, sparse: bool) -> Tensor:
    """The same FFN with a loop over experts: each for all tokens, or only for its own."""
    x = hidden_bsd.flatten(0, 1)
    gates = choose_experts(
        F.linear(x, ffn.routers.router(0)).float().softmax(-1), ffn.routers.top_k
    )
    weights_ne = x.new_zeros(len(x), gates.total).scatter(1, gates.experts, gates.weights.to(x))
    used = []
    for e in range(gates.total):
        token = weights_ne[:, e].nonzero().squeeze(1) if sparse else slice(None)
        used.append((token, ffn.frozen.scales[e] * weights_ne[token, e, None], ffn.frozen.rows(e)))

    def linear(u: Tensor, name: str) -> Tensor:
        grown = ffn.maps[name]
        out: Tensor = grown.linear(u)
        for token, weight, rows in used:
            low = F.linear(u[token], grown.frozen_A[rows]) * weight
            out[token] += low @ grown.frozen_B[rows]
        return out

    gated = F.silu(linear(x, "gate_proj")) * linear(x, "up_proj")
    out: Tensor = linear(gated, "down_proj")
    return out.view_as(hidden_bsd)
