"""What experts and location cost where prompts are answered: beside the base, and the card."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from cmoe.experiments.benchmarks.card import Limit
from cmoe.experiments.benchmarks.figures import (
    Figure,
    Missing,
    UnmeasurableError,
    in_turn,
    timed,
)
from cmoe.experiments.benchmarks.timing import milliseconds, ratio
from cmoe.experiments.benchmarks.workload import EXPERTS, Workload, grow
from cmoe.experiments.planning.operations import adapter_flops, operations
from cmoe.experiments.planning.sizes import widths_of
from cmoe.modeling.base import find_ffns
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.settings import LocatorConfig

Calls = dict[str, Callable[[], object]]

FFN_ROUNDS = 25  # a difference of short times needs many
BESIDE_FFN = (0.10, 1.0)  # what experts may add to an FFN: of a prefill, of a decode step
BESIDE_PREFILL, BESIDE_ONE_TASK, BESIDE_STEP, BESIDE_LOCATED = 1.05, 1.10, 1.2, 1.06


def one_ffn(work: Workload) -> list[Figure | Missing]:
    """What the experts of one task add to the first layer's FFN."""
    model = GrowingVLM(work.twin(), top_k=EXPERTS.top_k)
    grow(model, "experts", {0: work.sizes.experts})
    model.commit({})
    return [
        _added(work, model, tokens, most)
        for tokens, most in zip(work.sizes.tokens, BESIDE_FFN, strict=True)
    ]


def _added(work: Workload, model: GrowingVLM, tokens: int, most: float) -> Figure | Missing:
    hidden = torch.randn(1, tokens, work.shape.width, device=work.device, dtype=work.dtype)
    grown, routing = model.ffns[0], model.routing("experts", 1)

    def with_experts() -> None:
        with model._context.using(routing):
            grown(hidden)

    frozen = partial(find_ffns(work.base)[0].module, hidden)
    times = in_turn({"frozen": frozen, "grown": with_experts}, FFN_ROUNDS)
    if times.failed:
        return Missing(next(iter(times.failed.values())))
    added, alone = (
        ratio(times.seconds, "grown", "frozen") - 1,
        milliseconds(times.seconds["frozen"]),
    )
    return Figure(
        added * alone,
        rival="frozen FFN",
        others=alone,
        ratio=added,
        most=most,
        limit=_least_added(work, tokens),
    )


def _least_added(work: Workload, tokens: int) -> Limit:
    """Each of the FFN's different inputs is read once more, and every expert that is used.

    What the experts give is added where the FFN's own kernels write.
    """
    maps, count = work.shape.maps[0], work.sizes.experts
    used = min(EXPERTS.top_k, count)
    weights = EXPERTS.rank * widths_of(maps)
    return work.card.limit(
        operations=2 * tokens * (used * weights + count * work.shape.width),
        moved=work.element
        * (tokens * sum({inputs for inputs, _ in maps}) + min(count, tokens * used) * weights),
    )


def prefill(work: Workload) -> list[Figure | Missing]:
    """Prompts up to their first token: by the base, by one task, by all tasks in one batch."""
    one, mixed = "one task", "mixed"
    calls: Calls = {
        "base": _pass(work, work.base),
        one: _pass(work, work.grown, work.sizes.tasks - 1),
        mixed: _pass(work, work.grown, work.mixed),
    }
    times = in_turn(calls, work.sizes.rounds)
    grown = least_prefill(work, work.sizes.tasks)
    return [
        timed(times, "base", limit=least_prefill(work, 0)),
        timed(times, one, "base", most=BESIDE_PREFILL, limit=grown),
        timed(times, mixed, "base", most=BESIDE_PREFILL, limit=grown),
        timed(times, mixed, one, most=BESIDE_ONE_TASK, limit=grown),
    ]


def _pass(work: Workload, model: Any, *tasks: Any) -> Callable[[], Any]:
    """A prefill of the prompts, by the base or by a growing model."""
    if model is work.base:
        return partial(model, **work.prompts, logits_to_keep=1, use_cache=True)
    return partial(model, work.prompts, *tasks, logits_to_keep=1, use_cache=True)


def least_prefill(work: Workload, tasks: int) -> Limit:
    """A prefill's limit; where tasks were learned, with the last one's experts."""
    shape, (rows, length) = work.shape, work.prompts["input_ids"].shape
    run, growth = work.run(length), work.growth(tasks)
    own = adapter_flops(run, shape, growth) if tasks else 0
    each = operations(run, shape, growth or work.growth(1)).feature + length * own
    return work.card.limit(
        operations=rows * (each + 2 * shape.width * shape.vocabulary),
        moved=work.element * (shape.decoder + shape.vision),
    )


def decode(work: Workload) -> list[Figure | Missing]:
    """One more token for each of the prompts, as a service asks for it."""
    times = in_turn(_steps(work), work.sizes.rounds)
    grown = _least_step(work, work.sizes.tasks)
    return [
        timed(times, "base", limit=_least_step(work, 0)),
        timed(times, "one task", "base", most=BESIDE_STEP, limit=grown),
        timed(times, "mixed", "base", most=BESIDE_STEP, limit=grown),
    ]


def _steps(work: Workload) -> Calls:
    """Steps on one cache, which each leaves as it was."""
    asked, rows = work.prompts, work.sizes.prompts
    cache = _pass(work, work.base)().past_key_values
    mask: Tensor = torch.nn.functional.pad(asked["attention_mask"], (0, 1), value=1)
    inputs = {"input_ids": asked["input_ids"][:, -1:], "attention_mask": mask}
    cached = {"past_key_values": cache, "use_cache": True}

    def step(forward: Callable[[], object]) -> None:
        forward()
        cache.crop(-1)

    last, mixed = (work.grown.routing(t, rows) for t in (work.sizes.tasks - 1, work.mixed))
    return {
        "base": partial(step, partial(work.base, **inputs, **cached)),
        "one task": partial(step, partial(work.grown, inputs, last, **cached)),
        "mixed": partial(step, partial(work.grown, inputs, mixed, **cached)),
    }


def _least_step(work: Workload, tasks: int) -> Limit:
    """Layers and output embeddings are read once, and what is cached; so are experts."""
    shape, rows = work.shape, work.sizes.prompts
    weights = shape.flops // 2 + shape.width * shape.vocabulary
    if tasks:
        used = min(tasks, rows * EXPERTS.top_k)
        experts = EXPERTS.rank * sum(map(widths_of, shape.maps))
        weights += used * experts + tasks * shape.width * shape.layers
    cached = work.prompts["input_ids"].numel() * shape.cached
    return work.card.limit(operations=2 * rows * weights, moved=work.element * (weights + cached))


def location(work: Workload) -> list[Figure | Missing]:
    """Prefill of prompts whose tasks aren't named."""
    middle = work.shape.layers // 2
    locator = LocatorConfig(layer=middle, steps=1)
    upper = work.model(work.sizes.tasks, range(middle, work.shape.layers), locator)
    located = _pass(work, upper)

    def placed(where: Literal["front", "inline"]) -> None:
        upper.locator = replace(upper.locator, placement=where)
        located()

    calls: Calls = {
        "base": _pass(work, work.base),
        "inline": partial(placed, "inline"),
        "front": partial(placed, "front"),
        "last": _pass(work, work.grown),
    }
    times = in_turn(calls, work.sizes.rounds)
    least = least_prefill(work, work.sizes.tasks)
    return [
        timed(times, "inline", "base", most=BESIDE_LOCATED, limit=least),
        timed(times, "front", "base", limit=least),
        timed(times, "last", "base", limit=least),
    ]


def host_waits(work: Workload) -> list[Figure]:
    """How often the host waits for the device in a prefill of all tasks, and in a step of it."""
    require_gpu(work)
    routing = work.grown.routing(work.mixed, work.sizes.prompts)
    steps = _steps(work)
    pairs = (
        (_pass(work, work.base), _pass(work, work.grown, routing)),
        (steps["base"], steps["mixed"]),
    )
    return [more_waits(work, "base", alone, grown) for alone, grown in pairs]


def require_gpu(work: Workload) -> None:
    """UnmeasurableError where the host has nothing to wait for."""
    if not work.device.startswith("cuda"):
        raise UnmeasurableError("counted on a GPU alone")


def more_waits(
    work: Workload, rival: str, others: Callable[[], object], ours: Callable[[], object]
) -> Figure:
    """How often the host waits in a call, beyond what it does in the rival's."""
    waits = _waits(others)
    return Figure(_waits(ours) - waits, "more", rival=rival, others=waits, most=0)


def _waits(call: Callable[[], object]) -> int:
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message).lower() for each in said)
