"""Planned memory against bytes that DeepSpeed's workers and autograd really hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.tiny_models import make_base, make_inputs, make_wide_base, make_wide_inputs
from support.workers import run_group
from torch import Tensor
from torch.nn import Parameter

from cmoe.common.group import Group
from cmoe.config.settings import ClusterConfig
from cmoe.config.tree import RunConfig
from cmoe.data.settings import DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.experiments.planning.memory import Memory, memory, remedies, training_activations
from cmoe.experiments.planning.sizes import Shape, shape_of, worst_growth
from cmoe.methods.settings import ExpertsConfig, ProbeConfig
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base, load_shape
from cmoe.modeling.settings import MINI_BASE, ModelConfig
from cmoe.training.engine import Engine
from cmoe.training.settings import TrainingConfig

TASKS = ("ScienceQA", "TextVQA", "ImageNet")
WORKERS = 2


def make_config(**changes: Any) -> RunConfig:
    parts: dict[str, Any] = {
        "data": DataConfig(tasks=TASKS),
        "experts": ExpertsConfig(rank=8),
        "probe": ProbeConfig(),
        "training": TrainingConfig(global_batch=4, micro_batch=2, steps=2),
        "cluster": ClusterConfig(workers=WORKERS),
    }
    return RunConfig("plan", **(parts | changes))


def bytes_of(tensors: Any) -> int:
    """Of tensors' storages, each once; of a sharded parameter its shard's."""
    held = {}
    for t in tensors:
        mine = getattr(t, "ds_tensor", t)
        storage = mine.untyped_storage()
        held[storage.data_ptr()] = mine.nbytes if mine is not t else storage.nbytes()
    return sum(held.values())


def gradients_of(engine: Engine, learned: list[Parameter]) -> tuple[int, int]:
    """Bytes of the parameters' own gradients, and of what the optimizer sums them in."""
    kept = [value for name, value in vars(engine.engine.optimizer).items() if "grad" in name]
    own = [p.grad for p in learned if p.grad is not None]
    return bytes_of(own), bytes_of([*own, *tensors_in(kept)]) - bytes_of(own)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of lists and dicts that hold more than one number, but for parameters."""
    if isinstance(value, Tensor):
        if value.numel() > 1 and not isinstance(value, Parameter):
            yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


def held_as_planned(group: Group, zero: int, dtype: str) -> None:
    """Two steps of two micro-batches each."""
    training = TrainingConfig(global_batch=4, micro_batch=1, steps=2, zero=zero)
    config = make_config(training=training, model=ModelConfig(dtype=dtype))
    base = make_base().to(getattr(torch, dtype))
    shape = shape_of(base)
    planned = {m.phase: m for m in memory(config, shape, 100)}["training"].parts
    model = GrowingVLM(base)
    optional = {id(p) for part in (base.model.vision_tower, base.model.multi_modal_projector)
                for p in part.parameters()}  # fmt: skip
    vision = bytes_of(p for p in base.parameters() if id(p) in optional)
    for task, grown in zip(TASKS, worst_growth(config, shape), strict=True):
        learned = model.grow(task, grown, rank=8, lora_alpha=8, seed=0)
        if task == TASKS[-1]:
            break
        model.commit({})
    engine = Engine(model, training, 2, group.workers)
    inputs = make_inputs(batch=1, seed=group.rank)
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["pixel_values"] = inputs["pixel_values"].to(base.dtype)
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        for _ in range(2):
            engine.backward(engine.model(inputs, TASKS[-1]).loss)
            seen.append(gradients_of(engine, learned))
        engine.update()
    trained = {id(p) for p in learned}
    frozen = [p for p in model.parameters() if id(p) not in trained and id(p) not in optional]
    experts = [
        t for n, t in model.named_buffers() if n.rsplit(".")[-1] in ("frozen_A", "frozen_B", "rows")
    ]
    inner = getattr(engine.engine.optimizer, "optimizer", engine.engine.optimizer)
    masters = [p for p in inner.state if id(p) not in trained]
    states = [t for s in inner.state.values() for t in s.values()
              if isinstance(t, Tensor) and t.ndim]  # fmt: skip
    shards = {getattr(p, "ds_tensor", p).untyped_storage().data_ptr() for p in learned}
    copies = [p for p in masters if p.untyped_storage().data_ptr() not in shards]
    measured = {
        "weights": vision + bytes_of(frozen),
        "experts": bytes_of(experts) + sum(getattr(p, "ds_tensor", p).nbytes for p in learned),
        "optimizer": bytes_of([*copies, *states]),
        # The last micro-batch's and the sums meet while they are reduced.
        "gradients": sum(map(max, zip(*seen, strict=True))),
    }
    for part, count in measured.items():
        assert planned[part] == pytest.approx(count, rel=0.1), (part, zero, dtype)
    engine.close()


def all_held_as_planned(group: Group) -> None:
    for dtype in ("float32", "bfloat16"):
        for zero in (0, 1, 2, 3):
            held_as_planned(group, zero, dtype)


def test_two_workers_hold_what_was_planned() -> None:
    run_group(WORKERS, all_held_as_planned)


# Activations


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("checkpointing", "layers"), [(False, None), (True, None), (True, 2)])
def test_a_micro_batch_leaves_the_planned_activations(
    checkpointing: bool, layers: int | None, dtype: Any, attention: Any
) -> None:
    training = TrainingConfig(
        global_batch=4,
        micro_batch=2,
        gradient_checkpointing=checkpointing,
        checkpointed_layers=layers,
        steps=1,
    )
    data = DataConfig(tasks=TASKS, max_length=128)
    named = ModelConfig(dtype=dtype, attention=attention)
    config = make_config(training=training, data=data, model=named)
    base = make_wide_base().to(getattr(torch, dtype))
    base.set_attn_implementation(attention or "sdpa")
    shape = shape_of(base)
    model = GrowingVLM(base)
    if checkpointing:
        model.enable_gradient_checkpointing(layers)
    for task, grown in zip(TASKS, worst_growth(config, shape), strict=True):
        model.grow(task, grown, rank=8, lora_alpha=8, seed=0)
        if task != TASKS[-1]:
            model.commit({})
    model.train()
    inputs = make_wide_inputs(batch=2, text=64)
    inputs["pixel_values"] = inputs["pixel_values"].to(base.dtype)
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = model(inputs, TASKS[-1], record=True, num_items_in_batch=256)
    assert out.loss.requires_grad
    measured = sum(saved.values())
    logits = 2 * 128 * 8000 * 4
    planned = training_activations(config, shape)
    # The plan is of the peak: the loss's gradient and the logits come on top of what is kept.
    assert measured == pytest.approx(planned - 2 * logits, rel=0.1)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_weights_take_what_was_planned(quantization: Any) -> None:
    pytest.importorskip("bitsandbytes")
    base, _ = load_base(str(MINI_BASE), quantization=quantization)
    scales = [getattr(m.weight, "quant_state", m.weight) for m in base.modules()
              if not getattr(m, "weight", torch.empty(0)).is_floating_point()]  # fmt: skip
    measured = bytes_of(base.parameters())
    measured += bytes_of(s.absmax if quantization == "nf4" else s.SCB for s in scales)
    config = make_config(model=ModelConfig(quantization=quantization))
    shape = shape_of(load_shape(str(MINI_BASE)))
    for phase in memory(config, shape, 100):
        assert phase.parts["weights"] == pytest.approx(measured, rel=1e-3), phase.phase


def test_quantised_weights_arent_sharded() -> None:
    with pytest.raises(ValueError, match=r"training.zero is 3, .*model.quantization nf4: 0, 1 or"):
        make_config(
            model=ModelConfig(quantization="nf4"),
            training=TrainingConfig(global_batch=4, micro_batch=2, zero=3),
        )


# What fits, and what helps

LLAVA = Shape(
    decoder=6_738_939_904,
    vision=324_487_168,
    maps=(((4096, 11008), (4096, 11008), (11008, 4096)),) * 32,
    attention=((),) * 32,
    linears=((4096, 4096),) * 128 + ((4096, 11008), (4096, 11008), (11008, 4096)) * 32,
    width=4096,
    vocabulary=32064,
    cached=2 * 32 * 4096,
    flops=2 * 202_383_360 * 32,
    image_tokens=576,
    heads=32,
)
"""LLaVA-1.5-7B."""


def phase(config: RunConfig, name: str) -> Memory:
    (found,) = (m for m in memory(config, LLAVA, 10_000) if m.phase == name)
    return found


def wide_config(zero: int = 2, micro: int = 8, batch: int = 32, again: bool = True) -> RunConfig:
    return make_config(
        model=ModelConfig(dtype="bfloat16"),
        training=TrainingConfig(
            global_batch=128, micro_batch=micro, zero=zero, gradient_checkpointing=again
        ),
        evaluation=EvaluationConfig(batch_size=batch),
        cluster=ClusterConfig(workers=8),
    )


@pytest.mark.parametrize(
    ("config", "name", "part", "change"),
    [
        (wide_config(), "training", "weights", "training.zero 3"),
        (wide_config(again=False), "training", "activations", "gradient_checkpointing true"),
        (wide_config(3, 16), "training", "activations", "training.micro_batch"),
        (wide_config(batch=128), "answering", "KV cache", "evaluation.batch_size"),
    ],
)
def test_the_setting_that_helps_is_that_of_the_largest_part(
    config: RunConfig, name: str, part: str, change: str
) -> None:
    before = phase(config, name)
    assert max(before.parts, key=lambda p: before.parts[p]) == part
    limit = before.total - 1
    first, *others = (r for r in remedies(config, LLAVA, 10_000, limit) if r.phase == name)
    assert any(change in r.change for r in (first, *others))
    assert all(r.total <= limit for r in others)
    assert not list(remedies(config, LLAVA, 10_000, 2.0**60))


def test_a_remedy_makes_it_fit_or_is_the_best_there_is() -> None:
    config = wide_config()
    total = phase(config, "answering").total
    remedy = {r.change: r for r in remedies(config, LLAVA, 10_000, 0.8 * total)
              if r.phase == "answering"}  # fmt: skip
    sharded = replace(config, training=replace(config.training, zero=3))
    assert remedy["training.zero 3"].total == phase(sharded, "answering").total < 0.8 * total
    smaller = replace(config, evaluation=replace(config.evaluation, batch_size=16))
    assert remedy["evaluation.batch_size 16"].total == phase(smaller, "answering").total
    hopeless = list(remedies(config, LLAVA, 10_000, 1.0))
    phases = {"loading", "training", "measuring", "locating", "answering"}
    assert {r.phase for r in hopeless} == phases
    assert len(hopeless) == 5, "one each: what helps most"
    packed = replace(config, model=replace(config.model, quantization="nf4"))
    (loading,) = (r for r in hopeless if r.phase == "loading")
    assert (loading.change, loading.total) == (
        "model.quantization nf4",
        phase(packed, "loading").total,
    )
    beyond = list(remedies(packed, LLAVA, 10_000, 1.0))
    assert not {r.change for r in beyond} & {"training.zero 3", "model.quantization int8"}


def test_a_cache_holds_keys_and_values_of_every_token() -> None:
    """512 KiB a token: two of 32 layers of 4096 numbers of two bytes."""
    tokens = 576 + 128 + 16
    assert phase(wide_config(), "answering").parts["KV cache"] == 32 * tokens * 512 * 1024
