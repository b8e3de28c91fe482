"""Training on DeepSpeed is a plain loop: for every dtype, ZeRO stage, accumulation and group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.devices import DEVICE
from support.plain_trainer import make_batch, make_samples
from support.tiny_models import llava, make_base
from support.workers import run_group
from torch import Tensor, nn

from cmoe.common.group import Group
from cmoe.modeling.growing import GrowingVLM
from cmoe.training.engine import Engine, convert, learning_rate_factor
from cmoe.training.optimizer import MasterAdamW
from cmoe.training.settings import TrainingConfig
from cmoe.training.trainer import micro_batches

STEPS, MICRO, MIDDLE = 6, 2, 3
LIMIT = {"float32": 1e-4, "bfloat16": 1e-3}
SAMPLES = make_samples(60)


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        dtype: Of the weights.
        zero: ZeRO stage.
        count: Micro-batches of a step, of all workers together.
        workers: How many there are.
        clip: Largest norm; every step's gradient is larger than 0.05 and smaller than 100.
        resumed: Workers that trained the first steps, where others go on from their checkpoint.
        dropout: Of the base, which comes in training mode; its layers are recomputed, too.
    """

    dtype: str
    zero: int
    count: int
    workers: int
    clip: float = 0.05
    resumed: int | None = None
    dropout: float = 0.0

    @property
    def name(self) -> str:
        rest = f"from{self.resumed}" if self.resumed else f"clip{self.clip:g}"
        rest += "-dropout" if self.dropout else ""
        return f"{self.dtype}-zero{self.zero}-{self.count}on{self.workers}-{rest}"

    @property
    def config(self) -> TrainingConfig:
        return TrainingConfig(
            steps=STEPS,
            global_batch=MICRO * self.count,
            micro_batch=MICRO,
            learning_rate=1e-2,
            warmup=0.34,
            weight_decay=0.1,
            clip=self.clip,
            zero=self.zero,  # type: ignore[arg-type]
        )


STAGES = [(dtype, zero) for dtype in LIMIT for zero in range(4)]
BF16 = [stage for stage in STAGES if stage[0] == "bfloat16"]
CASES = [
    *(Case(d, z, 1, 1) for d, z in STAGES),
    *(Case(d, z, 6, 1) for d, z in STAGES),
    *(Case(d, z, 6, 1, resumed=1) for d, z in BF16),
    *(Case(d, z, 1, 1, dropout=0.5) for d, z in (("float32", 2), ("bfloat16", 0), ("float32", 3))),
    *(Case(d, z, 2, 2) for d, z in STAGES),
    *(Case(d, z, 12, 2) for d, z in STAGES),
    # Three micro-batches for two workers: one of them repeats one that counts nothing.
    *(Case(d, z, 3, 2, clip=100.0) for d, z in (("float32", 2), *BF16)),
    *(Case(d, z, 6, 2, resumed=1) for d, z in (("float32", 2), *BF16)),
]


def make_model(dtype: str, dropout: float = 0.0) -> GrowingVLM:
    """Two layers, an older task in both, and a task to be learned in one."""
    config = llava()
    config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = 2, 1
    config.text_config.attention_dropout = config.vision_config.attention_dropout = dropout
    base = make_base(config=config).to(DEVICE, getattr(torch, dtype))
    model = GrowingVLM(base.train(dropout > 0))
    if dropout:
        model.enable_gradient_checkpointing()
    generator = torch.Generator().manual_seed(0)
    for task, experts in (("older", {0: 1, 1: 1}), ("learned", {1: 1})):
        parameters = model.grow(task, experts, rank=8, lora_alpha=8, seed=1)
        with torch.no_grad():
            for p in parameters:
                p.add_(torch.randn(p.shape, generator=generator).to(p), alpha=0.05)
        if task == "older":
            model.commit({})
    return model


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def order_of(case: Case) -> Any:
    rng = np.random.default_rng(0)
    return rng.integers(0, len(SAMPLES), (STEPS, MICRO * case.count))


def loss_of(forward: Any, rows: Sequence[int]) -> Tensor:
    batch = make_batch([SAMPLES[i] for i in rows], answers=True)
    inputs = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
    out = forward(inputs, 1, record=True, num_items_in_batch=2.0 * len(rows))
    loss: Tensor = out.loss + 0.01 * out.balance_loss
    return loss


def plain(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masters before and behind a loop in plain torch."""
    config, model = case.config, make_model(case.dtype)
    weights = learning(model)
    masters = {n: p.detach().float().clone() for n, p in weights.items()}
    before = {n: m.clone() for n, m in masters.items()}
    optimizer = torch.optim.AdamW(
        masters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    warmup = round(config.warmup * STEPS)
    for step, batch in enumerate(order_of(case)):
        factor = learning_rate_factor(step, STEPS, warmup)
        optimizer.param_groups[0]["lr"] = config.learning_rate * factor
        for m in masters.values():
            m.grad = torch.zeros_like(m)
        for rows in batch.reshape(case.count, MICRO).tolist():
            loss = loss_of(model, rows) / case.count
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for m, g in zip(masters.values(), gradients, strict=True):
                assert m.grad is not None
                m.grad += g.float()
        norm = torch.nn.utils.clip_grad_norm_(masters.values(), config.clip)
        assert 0.05 < norm < 100, norm
        optimizer.step()
        with torch.no_grad():
            for n, p in weights.items():
                p.copy_(masters[n])
    return before, masters


def masters_of(engine: Engine, model: GrowingVLM) -> dict[str, Tensor]:
    """The fp32 weights that the optimizer keeps."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights, optimizer = learning(model), engine.engine.optimizer
    if isinstance(optimizer, MasterAdamW):
        return {n: m.clone() for n, m in zip(weights, optimizer.masters, strict=True)}
    if engine.zero == 0:
        return {n: p.detach().clone() for n, p in weights.items()}
    return {n: safe_get_full_fp32_param(p).clone().view(-1) for n, p in weights.items()}


def trained(case: Case, group: Group, folder: Path) -> tuple[dict[str, Tensor], bool, float]:
    """What a training by the engine leaves: masters, whether the weights are those, rounded, and
    how often a layer ran for a micro-batch.

    Half-way it leaves a checkpoint, or begins with one.
    """
    model, config = make_model(case.dtype, case.dropout), case.config
    passes: list[bool] = []
    model.ffns[1].ffn.register_forward_pre_hook(lambda *_: passes.append(True))
    converted = bool(case.resumed) and case.resumed != group.workers and case.zero > 0
    engine = Engine(model, config, STEPS, group.workers, converted=converted)
    start, kept = 0, folder / f"{case.dtype}-{case.zero}-{case.count}"
    if case.resumed:
        start = MIDDLE
        if converted:
            if group.first:
                convert(kept, kept.with_suffix(".converted"))
            group.wait()
            kept = kept.with_suffix(".converted")
        engine.load(kept)
    mine, shares = micro_batches(order_of(case)[start:], MICRO, group)
    rows = iter(mine)

    for step in range(start, STEPS):
        for share in shares:
            engine.backward(share * loss_of(engine.model, next(rows)))
        engine.update()
        if step + 1 == MIDDLE and case.count == 6:
            engine.save(kept)
    masters = masters_of(engine, model)
    engine.close()
    rounded = all(
        torch.equal(p.detach().flatten(), masters[n].to(p.dtype).flatten())
        for n, p in learning(model).items()
    )
    return masters, rounded, len(passes) / len(mine)


def distance(found: Mapping[str, Tensor], before: dict[str, Tensor], after: Any) -> float:
    """How far weights are from where a plain loop takes them, in parts of the whole way."""
    off = sum((found[n].view_as(a) - a).double().square().sum() for n, a in after.items())
    way = sum((a - before[n]).double().square().sum() for n, a in after.items())
    return float((off / way) ** 0.5)


def work(group: Group, folder: Path) -> None:
    found: dict[str, Any] = {}
    references: dict[Any, Any] = {}
    for case in CASES:
        if case.workers != group.workers:
            continue
        masters, rounded, passes = trained(case, group, folder)
        if group.first:
            key = (case.dtype, case.count, case.clip)
            if key not in references:
                references[key] = plain(case)
            off = distance(masters, *references[key])
            found[case.name] = {"distance": off, "same": rounded, "passes": passes}
    if group.first:
        (folder / f"{group.workers}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All trainings of as many workers in one group: to start one takes longer than they do."""
    folder = tmp_path_factory.mktemp("plain")
    counts = (1, 2) if DEVICE.type == "cpu" or torch.cuda.device_count() > 1 else (1,)
    for workers in counts:
        run_group(workers, work, folder)
    files = [json.loads((folder / f"{n}.json").read_text()) for n in counts]
    return {name: values for file in files for name, values in file.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_is_a_plain_loop_with_fp32_weights(found: dict[str, Any], case: Case) -> None:
    if case.name not in found:
        pytest.skip("there are fewer GPUs than workers")
    assert found[case.name]["distance"] < LIMIT[case.dtype]
    assert found[case.name]["same"], "the model's weights are the optimizer's, rounded"
    assert found[case.name]["passes"] == (2 if case.dropout else 1), "recomputed once, or never"
