"""The plan of a run: its parameters, memory, disk and time, and the page that is printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cmoe.common.amounts import in_bytes
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.experiments.planning.memory import (
    PARTS,
    Memory,
    fewest_checkpointed,
    largest_micro_batch,
    memory,
    remedies,
)
from cmoe.experiments.planning.operations import ANSWERED, work
from cmoe.experiments.planning.samples import Samples, samples_of
from cmoe.experiments.planning.sizes import (
    Added,
    Shape,
    added,
    shape_of,
    stored,
    tokens,
    worst_growth,
)
from cmoe.modeling.pretrained import load_shape
from cmoe.modeling.settings import FLASH, ModelConfig

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """A plan as figures; `lines` is what is printed of it.

    Attributes:
        config: The run.
        settings: What it is planned for.
        shape: Of its base.
        samples: By task.
        growth: Per task layer -> new experts, at worst.
        tasks: What each adds.
        phases: What a GPU holds.
    """

    config: RunConfig
    settings: PlanConfig
    shape: Shape
    samples: Mapping[str, Samples]
    growth: tuple[Mapping[int, int], ...]
    tasks: tuple[Added, ...]
    phases: tuple[Memory, ...]

    @property
    def largest(self) -> int:
        """Training samples of the largest task."""
        return max(s.train for s in self.samples.values())

    @property
    def stored(self) -> int:
        """Bytes of the store's tensors."""
        return stored(self.config, self.tasks)

    @property
    def fits(self) -> bool:
        """Whether every phase fits on a GPU."""
        return max(m.total for m in self.phases) <= self.settings.memory * GIB


def make_plan(config: RunConfig, settings: PlanConfig) -> Plan:
    """Plan a run, whose `cluster.workers` are the GPUs.

    Raises:
        MissingModelError: The base's configuration isn't there.
        UnsupportedModelError: The base can't grow.
        DataError: A task's size isn't known.
    """
    if config.entry.formula == "experts everywhere":
        config = replace(config, probe=replace(config.probe, enabled=False))
    model = config.model
    # Another machine may have what FlashAttention needs.
    planned = None if model.attention == FLASH else model.attention
    shape = shape_of(
        load_shape(model.path, revision=model.revision, attention=planned),
        attention="experts" in config.method_sections and config.experts.attention > 0,
    )
    samples = samples_of(config)
    growth = worst_growth(config, shape)
    tasks = added(config, shape, growth)
    phases = memory(config, shape, max(s.train for s in samples.values()))
    return Plan(config, settings, shape, samples, growth, tasks, phases)


def lines(plan: Plan) -> Iterator[str]:
    """The plan for a reader."""
    config, settings = plan.config, plan.settings
    gpus, zero = config.cluster.workers, config.training.zero
    yield (
        f"{config.name}: {config.model.name}, {_precision(config.model)}, ZeRO {zero}, "
        f"{gpus} GPUs of {settings.memory:g} GiB"
    )
    yield from ("", "parameters")
    yield from _columns(_parameter_rows(plan))
    yield from ("", "memory of each GPU")
    yield from _columns(_memory_rows(plan))
    worst = max(plan.phases, key=lambda m: m.total)
    verdict = "fits" if plan.fits else "DOESN'T FIT"
    yield f"{verdict}: {worst.phase} takes most, {in_bytes(worst.total)} of {settings.memory:g} GiB"
    yield from _help(plan)
    yield _micro_batches(plan)
    yield _checkpointed(plan)
    yield from ("", f"time on {gpus} GPUs at {settings.flops:.3g} operations per second each")
    yield from _columns(_time_rows(plan))
    yield from ("", f"store: {in_bytes(plan.stored)} on disk", "", "assumed")
    yield from (f"  {line}" for line in _assumptions(plan))


def _micro_batches(plan: Plan) -> str:
    """What could be trained at once. Without recomputation a step has a pass less."""
    limit = plan.settings.memory * GIB
    most = {
        way: largest_micro_batch(
            plan.config, plan.shape, plan.largest, limit, checkpointing=way == "with"
        )
        for way in ("with", "without")
    }
    told = ", ".join(f"{count or 'none'} {way}" for way, count in most.items())
    return f"largest training.micro_batch that fits, gradient_checkpointing or not: {told}"


def _checkpointed(plan: Plan) -> str:
    """How little recomputation does at the run's own micro-batch."""
    limit = plan.settings.memory * GIB
    count = fewest_checkpointed(plan.config, plan.shape, plan.largest, limit)
    at, layers = f"at training.micro_batch {plan.config.training.micro_batch}", plan.shape.layers
    if count is None:
        return f"{at} training doesn't fit, even if all {layers} layers are recomputed"
    if not count:
        return f"{at} training fits without gradient_checkpointing"
    return f"{at} training fits with training.checkpointed_layers {count} of {layers}"


def _precision(model: ModelConfig) -> str:
    return f"{model.quantization} and {model.dtype}" if model.quantization else model.dtype


def _help(plan: Plan) -> Iterator[str]:
    """For every phase that doesn't fit what would change that."""
    limit = plan.settings.memory * GIB
    helping = list(remedies(plan.config, plan.shape, plan.largest, limit))
    for phase in (m for m in plan.phases if m.total > limit):
        mine = [r for r in helping if r.phase == phase.phase]
        ways = ", or ".join(f"{r.change} ({in_bytes(r.total)})" for r in mine)
        if not mine:
            ways = "no setting helps; every GPU loads the whole base: a smaller one, or larger GPUs"
        elif mine[0].total > limit:
            ways = f"no setting alone is enough; most helps {ways}"
        yield f"  {phase.phase}: {ways}"


def _parameter_rows(plan: Plan) -> Iterator[list[str]]:
    last, total = plan.tasks[-1], len(plan.tasks)
    yield ["decoder, frozen", f"{plan.shape.decoder:,}"]
    yield ["vision tower and projector, frozen", f"{plan.shape.vision:,}"]
    yield ["experts of a task", f"{last.experts:,}"]
    for name in ("experts", "routers", "locator"):
        count = sum(getattr(task, name) for task in plan.tasks)
        yield [f"{name} of {total} tasks", f"{count:,}"]


def _memory_rows(plan: Plan) -> Iterator[list[str]]:
    yield ["", *(m.phase for m in plan.phases)]
    for part in PARTS:
        yield [part, *(in_bytes(m.parts.get(part, 0)) for m in plan.phases)]
    yield ["together", *(in_bytes(m.total) for m in plan.phases)]


def _time_rows(plan: Plan) -> Iterator[list[str]]:
    config, rate = plan.config, plan.settings.flops * plan.config.cluster.workers
    yield ["", "samples", "steps", "probe", "train", "locate", "answer"]
    spent = []
    for index, (task, samples) in enumerate(plan.samples.items()):
        done = work(config, plan.shape, plan.growth[: index + 1], samples)
        spent.append([n / rate for n in (done.probe, done.train, done.locate, done.answer)])
        about = "about " if samples.published else ""
        steps = config.training.steps_for(samples.train)
        yield [task, f"{about}{samples.train:,}", f"{steps:,}", *map(_seconds, spent[-1])]
    yield ["together", "", "", *(_seconds(sum(column)) for column in zip(*spent, strict=True))]


def _assumptions(plan: Plan) -> Iterator[str]:
    length = tokens(plan.config, plan.shape)
    yield f"{length} tokens a sample: {plan.shape.image_tokens} of its picture and the rest text"
    yield "every layer grows as far as the budgets allow, in every task; all experts are held"
    yield "operations per second are an assumption, not a measurement"
    if any(s.published for s in plan.samples.values()):
        yield "samples with 'about' are those published with CoIN; the files aren't there"
    if any(s.test is None for s in plan.samples.values()):
        yield "answering isn't counted where test files aren't there"
    yield f"a test sample is answered {ANSWERED} times; a sample that moves to another task, again"
    yield "activations are an estimate; CUDA's own memory and fragmentation take some GiB more"


def _columns(rows: Iterator[list[str]]) -> Iterator[str]:
    """Aligned text: the first column to the left, the others to the right."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *rest in table:
        cells = [cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True)]
        yield "  ".join(["", first.ljust(widths[0]), *cells])


def _seconds(count: float) -> str:
    if not count:
        return "-"
    if count < 100:
        return f"{count:.0f} s"
    return f"{count / 60:.0f} min" if count < 6000 else f"{count / 3600:.1f} h"
