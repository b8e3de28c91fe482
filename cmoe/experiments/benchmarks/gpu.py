"""What this system costs on a card, beside its rivals and the card's limits: the section `gpu`.

Its parts come in the order of their worth. A part that fails says why, and the others go on. One
that would pass the limit of time is left out by the names of its figures.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from cmoe.experiments.benchmarks.answering import decode, host_waits, location, one_ffn, prefill
from cmoe.experiments.benchmarks.figures import (
    Figure,
    Missing,
    Row,
    UnmeasurableError,
    empty,
    reason,
)
from cmoe.experiments.benchmarks.learning import (
    first_batch,
    training,
    training_memory,
    training_waits,
)
from cmoe.experiments.benchmarks.workload import TINY, Sizes, Workload
from cmoe.modeling.pretrained import require_base
from cmoe.modeling.settings import ModelConfig


class Part(NamedTuple):
    """Figures that are measured together.

    Attributes:
        figures: Their names.
        measure: Gives them in that order.
        seconds: About what it takes, whatever the base.
        passes: What it takes beside that, in prefills of the base.
    """

    figures: tuple[str, ...]
    measure: Callable[[Workload], Sequence[Figure | Missing]]
    seconds: float
    passes: float = 0


@torch.no_grad()
def costs_on_a_card(
    device: str, dtype: torch.dtype, base: str | None, tiny: bool, seconds: float
) -> list[Row]:
    """Experts, location and learning on this card, beside rivals and the card's own limits.

    Each row is told on stderr as it comes: what is cut off has said what it had measured.

    Args:
        device: Where it is measured.
        dtype: Of the weights.
        base: As of `Workload`.
        tiny: Small batches.
        seconds: Limit of the whole.

    Returns:
        A row for each figure, measured or not; `Figure` says what is in it.

    Raises:
        MissingModelError: Nothing usable lies at `base`.
    """
    start = time.monotonic()
    if base is not None:
        require_base(ModelConfig(base).path)
    torch.manual_seed(0)
    work = Workload(base, device, dtype, TINY if tiny else Sizes())
    rows: list[Row] = []
    for part in parts(work.sizes):
        left = seconds - (time.monotonic() - start)
        for row in _measured(part, work, left):
            print(_told(row, time.monotonic() - start), file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def parts(sizes: Sizes) -> tuple[Part, ...]:
    """All of them, the most valuable first; what they take is an estimate from above."""
    rounds = sizes.rounds + 3  # as calls are tried, and warmed up
    many, few = sizes.tokens
    prefilled, step = f"prefill of {sizes.prompts}", f"decode step of {sizes.prompts}"
    trained, added = (
        f"training on {sizes.micro_batch}",
        f"added by {sizes.experts} experts to an FFN",
    )
    mixed = f"{sizes.tasks} tasks mixed"
    return (
        Part(("copying", "matrix product"), limits, 2),
        Part(
            (
                f"{added}, {many:,} tokens",
                f"{added}, {few:,} tokens",
            ),
            one_ffn,
            5,
        ),
        Part(
            (
                f"{prefilled}, base",
                f"{prefilled}, one task",
                f"{prefilled}, {mixed}",
                f"{prefilled}, {mixed}, beside one task",
            ),
            prefill,
            10,
            4 * rounds,
        ),
        Part(
            (
                f"{step}, base",
                f"{step}, one task",
                f"{step}, {mixed}",
            ),
            decode,
            5,
            1 + rounds,
        ),
        Part(
            (
                f"{trained}, PEFT's LoRA",
                f"{trained}, the first task",
                f"{trained}, behind {sizes.tasks} tasks",
            ),
            training,
            15,
            9 * rounds,
        ),
        Part(("host waits, mixed prefill", "host waits, mixed decode step"), host_waits, 5, 8),
        Part(("host waits, training",), training_waits, 5, 12),
        Part(
            (
                f"{prefilled}, located inline",
                f"{prefilled}, located in front, middle layer",
                f"{prefilled}, located in front, last layer",
            ),
            location,
            10,
            7 * rounds,
        ),
        Part((f"memory of {trained}",), training_memory, 10, 6),
        Part(
            (
                f"first batch of a phase, {sizes.loader_workers} loader processes",
                "first batch of a run, which starts them",
            ),
            first_batch,
            75 if sizes.loader_workers > 1 else 20,
        ),
    )


def limits(work: Workload) -> list[Figure]:
    """What the card can do at most; the limits of all other figures follow from it."""
    card = work.card
    return [Figure(card.bandwidth / 1e9, "GB/s"), Figure(card.rate / 1e12, "TFLOP/s")]


def _measured(part: Part, work: Workload, left: float) -> list[Row]:
    """A part's rows; where it fails or takes too long, they say why they hold nothing."""
    rows = []
    try:
        _require_time(part, work, left)
        figures = part.measure(work)
        rows = [f.row(name) for name, f in zip(part.figures, figures, strict=True)]
    except Exception as error:  # whatever it is, the other parts go on
        why = reason(error)
    gc.collect()  # only now: an error holds what failed, with its tensors
    if work.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return rows or [empty(name, why) for name in part.figures]


def _require_time(part: Part, work: Workload, left: float) -> None:
    needed = part.seconds
    if needed <= left and part.passes:
        needed += part.passes * work.pass_seconds
    if needed > left:
        raise UnmeasurableError(f"takes about {needed:.0f} s, and {max(left, 0):.0f} s are left")


def _told(row: Row, passed: float) -> str:
    """A row as a line."""
    said = f"{passed:4.0f} s  {row['figure']}: "
    if row["measured"] is None:
        return f"{said}not measured, {row['not measured']}"
    said += f"{row['measured']:.4g} {row['unit']}"
    return said if row["ratio"] is None else f"{said}, {row['ratio']:.3f} of {row['rival']}"
