"""The plan's page, and the flag that prints it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import ROOT as REPOSITORY

from cmoe.config.parse import parse
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.data.settings import DataConfig
from cmoe.experiments.planning.footprint import footprint
from cmoe.experiments.planning.memory import fewest_checkpointed, largest_micro_batch, memory
from cmoe.experiments.planning.plan import GIB, Plan, lines, make_plan
from cmoe.methods.settings import ExpertsConfig
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE
from cmoe.store.model import create_store

JOB = REPOSITORY / "ray_jobs" / "coin_stream.py"
MINI = REPOSITORY / "configs" / "coin_mini.yaml"
TASKS = ("ScienceQA", "TextVQA", "ImageNet")


def make_config(**changes: Any) -> RunConfig:
    parts: dict[str, Any] = {
        "data": DataConfig(tasks=TASKS),
        "experts": ExpertsConfig(rank=8),
    }
    return RunConfig("plan", **(parts | changes))


def test_the_store_takes_the_planned_bytes(tmp_path: Path) -> None:
    config = parse(["--config", str(MINI), "--data.tasks=[GQA,VizWiz]", "--model.dtype=bfloat16"])
    plan = make_plan(config, PlanConfig())
    base, _ = load_base(str(MINI_BASE), dtype=torch.bfloat16)
    locator = replace(config.locator, steps=2)
    model = GrowingVLM(base, attention=config.experts.attention, locator=locator)
    store = create_store(tmp_path, model, name="mini", revision="local", config={})
    for task, grown in zip(config.data.tasks, plan.growth, strict=True):
        model.grow(task, grown, rank=config.experts.rank, lora_alpha=8, seed=0)
        entry = model.bank.fit(torch.randn(12, plan.shape.width), seed=0)
        store.append(model.commit(entry))
    written = sum(f.size for record in store.records() for f in record.files.values())
    assert plan.stored < written < 1.1 * plan.stored, "the files' headers come on top"


def test_a_run_takes_its_store_and_two_checkpoints_of_disks_without_data_being_read() -> None:
    config = make_config(data=DataConfig(root="/nowhere", tasks=TASKS))
    plan, found = make_plan(config, PlanConfig()), footprint(config)
    largest = max(task.trained for task in plan.tasks)
    assert found.temp >= 2 * 4 * 4 * largest  # in float32: itself, a copy, Adam's two moments
    assert found.runs == plan.stored + found.temp
    assert found.gpu <= max(phase.total for phase in plan.phases)


def test_the_minis_plan_has_the_minis_figures() -> None:
    """The mini base's 1.4 M parameters, and the growth of its run if all layers grew."""
    plan = make_plan(parse(["--config", str(MINI)]), PlanConfig())
    text = "\n".join(lines(plan))
    base, _ = load_base(str(MINI_BASE))
    assert plan.shape.decoder + plan.shape.vision == sum(p.numel() for p in base.parameters())
    assert f"{plan.shape.decoder:,}" in text
    assert plan.fits
    assert "fits: training takes most" in text
    assert "200" in text, "steps"
    assert "assumption" in text
    assert "largest training.micro_batch that fits" in text
    small = replace(plan, settings=PlanConfig(memory=plan.phases[1].total / GIB - 0.001))
    assert not small.fits
    assert "DOESN'T FIT: training" in "\n".join(lines(small))
    tiny = "\n".join(lines(replace(plan, settings=PlanConfig(memory=1e-6))))
    assert "  loading: no setting alone is enough; most helps model.dtype bfloat16" in tiny


def test_more_gpus_and_a_higher_rate_take_less_time() -> None:
    def hours(gpus: int, flops: float) -> str:
        config = parse(
            ["--config", str(MINI), "--training.micro_batch=1", f"--cluster.workers={gpus}"]
        )
        plan = make_plan(config, PlanConfig(flops=flops))
        return next(x for x in lines(plan) if x.strip().startswith("together") and "iB" not in x)

    assert hours(2, 1e9) != hours(4, 1e9) == hours(2, 2e9)


def test_the_flag_prints_a_plan_and_starts_nothing(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['coin_stream.py', '--config', {str(MINI)!r}, '--runs', {str(tmp_path)!r},"
        " '--plan.gpus', '4', '--training.micro_batch', '8', '--data.root', 'nowhere']\n"
        "try:\n"
        f"    runpy.run_path({str(JOB)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "assert 'ray' not in sys.modules and 'deepspeed' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "4 GPUs of 80 GiB" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_plan_that_does_not_fit_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["coin_stream.py", "--config", str(MINI), "--plan.memory=0.01"]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOB), run_name="__main__")
    assert ended.value.code == 1
    assert "DOESN'T FIT" in capsys.readouterr().out


@cache
def mini_plan() -> Plan:
    flags = ["--training.global_batch", "48", "--training.micro_batch", "8"]
    return make_plan(parse(["--config", str(MINI), *flags]), PlanConfig())


@given(st.floats(-4, 1), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_largest_micro_batch_fits_and_the_next_one_does_not(
    power: float, checkpointing: bool
) -> None:
    plan = mini_plan()
    limit = 10**power * GIB

    def trains(micro_batch: int) -> bool:
        training = replace(
            plan.config.training, micro_batch=micro_batch, gradient_checkpointing=checkpointing
        )
        phases = memory(replace(plan.config, training=training), plan.shape, plan.largest)
        return next(m.total for m in phases if m.phase == "training") <= limit

    found = largest_micro_batch(
        plan.config, plan.shape, plan.largest, limit, checkpointing=checkpointing
    )
    sizes = [m for m in range(1, 25) if 24 % m == 0]  # of the 24 samples that a worker takes
    assert [m for m in sizes if trains(m)] == [m for m in sizes if m <= found]


@given(st.floats(-3, 0))
@settings(max_examples=20, deadline=None)
def test_the_fewest_recomputed_layers_fit_and_one_less_does_not(power: float) -> None:
    plan, limit = mini_plan(), 10**power * GIB

    def trains(layers: int) -> bool:
        training = replace(
            plan.config.training,
            gradient_checkpointing=layers > 0,
            checkpointed_layers=layers or None,
        )
        phases = memory(replace(plan.config, training=training), plan.shape, plan.largest)
        return next(m.total for m in phases if m.phase == "training") <= limit

    fits = [trains(layers) for layers in range(plan.shape.layers + 1)]
    few = fewest_checkpointed(plan.config, plan.shape, plan.largest, limit)
    assert few == (fits.index(True) if any(fits) else None)
