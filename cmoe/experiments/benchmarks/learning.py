"""What learning a task costs: its steps beside PEFT's LoRA, its memory, its first batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cmoe.data.loader import Loader
from cmoe.experiments.benchmarks.answering import more_waits, require_gpu
from cmoe.experiments.benchmarks.card import Limit
from cmoe.experiments.benchmarks.figures import Figure, Missing, in_turn, timed
from cmoe.experiments.benchmarks.timing import peak_bytes
from cmoe.experiments.benchmarks.workload import EXPERTS, Workload, grow
from cmoe.experiments.planning.memory import memory
from cmoe.experiments.planning.operations import operations
from cmoe.modeling.base import arguments, checkpoint_layers, find_ffns
from cmoe.training.optimizer import MasterAdamW

LORA = "PEFT's LoRA"
LEARNING_RATE = 1e-4
BESIDE_LORA = 1.06
FIRST_BATCH_S = 1.0
PASSES = 2  # of a loader: the first one starts its processes


def training(work: Workload) -> list[Figure | Missing]:
    """A step of the first task and of one behind all others, beside PEFT's LoRA of the same rank.

    All recompute activations, on the same maps and with the same optimizer.
    """
    tasks = work.sizes.tasks
    steps = {
        LORA: _Built(partial(_lora, work)),
        "first": _Built(partial(_learning, work, 0)),
        "last": _Built(partial(_learning, work, tasks)),
    }
    times = in_turn(steps, work.sizes.rounds)
    first = _least_step(work, 1)
    return [
        timed(times, LORA, limit=first),
        timed(times, "first", LORA, most=BESIDE_LORA, limit=first),
        timed(times, "last", LORA, most=BESIDE_LORA, limit=_least_step(work, tasks + 1)),
    ]


def training_waits(work: Workload) -> list[Figure]:
    """How often the host waits for the device in a step of training."""
    require_gpu(work)
    return [more_waits(work, LORA, _lora(work), _learning(work, 0))]


def _least_step(work: Workload, tasks: int) -> Limit:
    rows, length = work.batch["input_ids"].shape
    each = operations(work.run(length), work.shape, work.growth(tasks))
    moved = work.element * (work.shape.decoder + work.shape.vision)
    return work.card.limit(operations=rows * each.training, moved=moved)


class _Built:
    """Steps that are built when the first one is taken: what can't be built fails there."""

    def __init__(self, build: Callable[[], Callable[[], None]]) -> None:
        self._build = build
        self._step: Callable[[], None] | None = None

    def __call__(self) -> None:
        self._step = self._step or self._build()
        self._step()


def _learning(work: Workload, older: int) -> Callable[[], None]:
    """Steps of a task behind so many others, with an expert in each layer."""
    model = work.model(older)
    parameters = grow(model, "learning", work.growth(1)[0])
    model.enable_gradient_checkpointing()
    model.train()

    def loss() -> Tensor:
        out = model(work.batch, "learning", record=True)
        assert out.loss is not None
        assert out.balance_loss is not None
        total: Tensor = out.loss + EXPERTS.balance_weight * out.balance_loss
        return total

    return partial(_step, loss, parameters, _optimizer(work, parameters))


def _lora(work: Workload) -> Callable[[], None]:
    """Steps of PEFT's LoRA on the decoder's FFNs."""
    from peft import LoraConfig, get_peft_model

    base = work.twin()
    names = {id(module): name for name, module in base.named_modules()}
    maps = [
        names[id(site.module.get_submodule(name))] for site in find_ffns(base) for name in site.maps
    ]
    config = LoraConfig(r=EXPERTS.rank, lora_alpha=int(EXPERTS.lora_alpha), target_modules=maps)
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    checkpoint_layers(base)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def loss() -> Tensor:
        found: Tensor = model(**arguments(work.batch), use_cache=False).loss
        return found

    return partial(_step, loss, parameters, _optimizer(work, parameters))


def _optimizer(work: Workload, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The one that a run has with ZeRO 0."""
    kind = MasterAdamW if work.dtype == torch.bfloat16 else torch.optim.AdamW
    return kind(parameters, lr=LEARNING_RATE, weight_decay=0.0)


def _step(
    loss: Callable[[], Tensor],
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    with torch.enable_grad():
        loss().backward()
    optimizer.step()
    for p in parameters:
        p.grad = None


def training_memory(work: Workload) -> list[Figure]:
    """What training the stream's last task takes at its peak, beside what `cmoe plan` says."""
    rows, length = work.batch["input_ids"].shape
    run = work.run(length)
    (planned,) = (m for m in memory(run, work.shape, rows) if m.phase == "training")
    said = planned.total - planned.parts["locator"]  # the bank isn't held here

    def two_steps() -> None:
        step = _learning(work, len(run.data.tasks) - 1)
        step()  # makes the optimizer's states
        step()

    weights = sum(t.nbytes for t in (*work.base.parameters(), *work.base.buffers()))
    measured = weights + peak_bytes(two_steps, work.device)
    return [
        Figure(
            measured / 2**30,
            "GiB",
            rival="cmoe plan",
            others=said / 2**30,
            ratio=measured / said,
        )
    ]


def first_batch(work: Workload) -> list[Figure]:
    """Seconds until a pass has its first batch: when processes start, and ever after."""
    seconds = []
    numbers = [range(work.sizes.micro_batch)] * 2
    loader = Loader(work.collator, work.sizes.loader_workers)
    for _ in range(PASSES):
        start = time.perf_counter()
        batches = loader.batches("training", work.samples, numbers)
        next(batches)
        seconds.append(time.perf_counter() - start)
        for _ in batches:
            pass
    begun, later = seconds
    return [Figure(later, "s", most=FIRST_BATCH_S), Figure(begun, "s")]
