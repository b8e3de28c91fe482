"""DeepSpeed engines on the growing model: freed after every phase, resumed exactly."""

from __future__ import annotations

import gc
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.devices import DEVICE
from support.mapped import mapped
from support.tiny_models import make_base, make_inputs
from support.workers import run_group
from torch import Tensor

from cmoe.common.group import Group
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE
from cmoe.training.engine import Engine, gathering, learning_rate_factor
from cmoe.training.settings import TrainingConfig

CONFIG = TrainingConfig(steps=4, global_batch=4, micro_batch=2, learning_rate=1e-2)


def train(model: GrowingVLM, engine: Engine, steps: range) -> list[float]:
    losses = []
    for step in steps:
        for micro in range(engine.accumulation):
            inputs = make_inputs(batch=2, seed=10 * step + micro)
            inputs["labels"] = inputs["input_ids"].clone()
            engine.backward(engine.model(inputs, len(model.tasks)).loss)
        losses.append(engine.update().item())
    return losses


def alive() -> tuple[int, int]:
    """Engines, and bytes of tensors that the collector finds."""
    gc.collect()
    objects = gc.get_objects()
    engines = sum(type(o).__name__ == "DeepSpeedEngine" for o in objects)
    tensors = {o.data_ptr(): o.nbytes for o in objects if isinstance(o, Tensor)}
    return engines, sum(tensors.values())


def memory_stays_flat(group: Group, zero: int) -> None:
    config = TrainingConfig(**{**CONFIG.__dict__, "zero": zero})
    model = GrowingVLM(make_base())
    held = []
    for task in range(5):
        model.grow(f"task{task}", {0: 1}, rank=8, lora_alpha=8, seed=task)
        engine = Engine(model, config, 4, group.workers)
        train(model, engine, range(2))
        engine.close()
        del engine
        with gathering(model, zero), torch.no_grad():
            model(make_inputs(), task)
        model.commit({})
        engines, held_bytes = alive()
        assert engines == 0, f"{engines} engines are alive behind task {task}"
        held.append(held_bytes)
    frozen = 4 * 8 * sum(model.ffns[0].widths)
    router = 2 * 4 * model.ffns[0].hidden_size * 5
    growth = [after - before for before, after in pairwise(held)]
    assert all(g <= frozen + router for g in growth[1:]), (growth, frozen, router)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_engines_are_freed_and_memory_grows_by_the_primitives_alone(zero: int) -> None:
    run_group(1, memory_stays_flat, zero)


def resume_is_exact(group: Group, folder: Path, zero: int) -> None:
    config = TrainingConfig(**{**CONFIG.__dict__, "zero": zero})

    def begin() -> tuple[GrowingVLM, Engine]:
        model = GrowingVLM(make_base())
        model.grow("task", {0: 1, 2: 1}, rank=8, lora_alpha=8, seed=0)
        return model, Engine(model, config, 4, group.workers)

    whole_model, whole = begin()
    expected = train(whole_model, whole, range(4))
    whole.close()
    first_model, first = begin()
    assert train(first_model, first, range(2)) == expected[:2]
    first.save(folder)
    first.close()
    second_model, second = begin()
    second.load(folder)
    assert train(second_model, second, range(2, 4)) == expected[2:]
    second.close()
    for name, tensor in whole_model.learning().experts.items():
        assert torch.equal(second_model.learning().experts[name], tensor), name


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_a_loaded_engine_goes_on_bit_for_bit(tmp_path: Path, zero: int) -> None:
    run_group(1, resume_is_exact, tmp_path, zero)


def frozen_weights_stay_shared(group: Group, folder: Path, zero: int) -> None:
    base, _ = load_base(str(folder))
    model = GrowingVLM(base)
    model.grow("task", {0: 1}, rank=8, lora_alpha=8, seed=group.rank)
    config = TrainingConfig(**{**CONFIG.__dict__, "zero": zero})
    engine = Engine(model, config, 4, group.workers)
    ids = torch.arange(40, 64).view(2, 12)
    for _ in range(engine.accumulation):
        engine.backward(engine.model({"input_ids": ids, "labels": ids}, 0).loss)
    engine.update()
    engine.close()
    learned = [t.double().sum().item() for t in model.learning().experts.values()]
    assert len({tuple(each) for each in group.gather(learned)}) == 1, "all begin as the first does"
    held = mapped(folder / "model.safetensors")
    assert held["Rss"] > 0
    assert held["Anonymous"] == 0, "copies of what the workers of a machine would share"


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU's weights aren't the host's")
@pytest.mark.parametrize("zero", [0, 2])
def test_workers_of_a_machine_share_a_frozen_base(tmp_path: Path, zero: int) -> None:
    shutil.copytree(MINI_BASE, tmp_path / "base")
    run_group(2, frozen_weights_stay_shared, tmp_path / "base", zero)


def test_the_schedule_warms_up_and_ends_at_nothing() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(0, 10, 0) == 1


def test_accumulation_keeps_the_global_batch() -> None:
    config = TrainingConfig(global_batch=48, micro_batch=4)
    for workers in range(1, 13):
        count = config.accumulation(workers) * workers
        assert 12 <= count < 12 + workers, "each of 12 once, and few for nothing"
    with pytest.raises(ValueError, match="at most so many workers"):
        config.accumulation(13)
