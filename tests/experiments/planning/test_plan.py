"""The plan's operations, samples and page, and the flag that prints it."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT as REPOSITORY
from support.tiny_models import make_base, make_wide_base, make_wide_inputs
from torch.utils.flop_counter import FlopCounterMode

from cmoe.common.errors import DataError
from cmoe.config.parse import parse
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.data.settings import DataConfig
from cmoe.experiments.planning.operations import adapter_flops, operations
from cmoe.experiments.planning.plan import GIB, lines, make_plan
from cmoe.experiments.planning.samples import samples_of
from cmoe.experiments.planning.sizes import shape_of, worst_growth
from cmoe.methods.cmoe import CMoE
from cmoe.methods.settings import ExpertsConfig, ProbeConfig
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import MINI_BASE, LocatorConfig
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


# Operations


@pytest.mark.parametrize("top_k", [1, 2])
@torch.no_grad()
def test_what_a_task_adds_is_what_the_method_counts(top_k: int) -> None:
    config = make_config(
        experts=ExpertsConfig(rank=8, top_k=top_k, per_layer=1), probe=ProbeConfig(max_layers=2)
    )
    method = CMoE(make_base(), config.experts, config.probe, LocatorConfig(), 0)
    shape = shape_of(method.module.base)
    growth = worst_growth(config, shape)
    for index, (task, grown) in enumerate(zip(TASKS, growth, strict=True)):
        method.module.grow(task, grown, rank=8, lora_alpha=8, seed=0)
        method.module.commit({})
        counted = adapter_flops(config, shape, growth[: index + 1])
        assert counted == method.flops_per_token(index)
    assert shape.flops == method.flops_per_token(BASE)


def test_a_samples_operations_are_those_that_torch_counts() -> None:
    """Forward, and backward through frozen weights, with attention, head and vision tower."""
    inputs = make_wide_inputs(batch=1, text=64)
    length = inputs["input_ids"].shape[1]
    config = make_config(data=DataConfig(tasks=TASKS[:1], max_length=length))
    base = make_wide_base()
    shape = shape_of(base)
    growth = worst_growth(config, shape)
    model = GrowingVLM(base)
    model.grow(TASKS[0], growth[0], rank=8, lora_alpha=8, seed=0)
    each = operations(config, shape, growth)
    # Torch counts the product that adds to a copy, but not the same one in place.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **kwargs: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as forward:
        out = model(inputs, TASKS[0])
    with FlopCounterMode(display=False, custom_mapping=in_place) as backward:
        out.loss.backward()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert each.forward == pytest.approx(forward.get_total_flops(), rel=0.1)
    # The embeddings take no gradient: below the first of these four layers nothing goes back.
    assert each.training == pytest.approx(both, rel=0.15)
    assert each.training > both


# Samples


def write_rows(root: Path, task: str, file: str, count: int) -> None:
    folder = root / "Instructions_Original" / task
    folder.mkdir(parents=True, exist_ok=True)
    row = {"image": "not/here.png", "text": "What?", "answer": "yes"}
    (folder / file).write_text(json.dumps([row | {"question_id": i} for i in range(count)]))


def test_samples_are_counted_where_files_are(tmp_path: Path) -> None:
    write_rows(tmp_path, "VizWiz", "train.json", 50)
    write_rows(tmp_path, "VizWiz", "val.json", 7)
    data = DataConfig(root=str(tmp_path), tasks=("VizWiz", "GQA"))

    def of(task: str, **changes: Any) -> tuple[int, int | None, bool]:
        found = samples_of(make_config(data=replace(data, **changes)))[task]
        return found.train, found.test, found.published

    assert of("VizWiz") == (50, 7, False)
    assert of("VizWiz", train_samples=20, test_samples=3) == (20, 3, False)
    assert of("VizWiz", selection=0.1) == (45, 7, False)
    assert of("VizWiz", selection=0.1, evaluate_on="selection") == (45, 5, False)
    assert of("GQA") == (72_000, None, True)
    assert of("GQA", train_samples=100)[0] == 100
    write_rows(tmp_path, "VizWiz", "train.json", 50)
    (tmp_path / "Instructions_Original" / "VizWiz" / "train.json").write_text("{")
    with pytest.raises(DataError, match=r"VizWiz/train\.json: not JSON"):
        of("VizWiz")
    generated = samples_of(parse(["--config", str(MINI), f"--data.root={tmp_path / 'new'}"]))
    assert {(s.train, s.test) for s in generated.values()} == {(1600, 200)}


def test_prepared_samples_are_counted_in_their_manifest(tmp_path: Path) -> None:
    tasks = {"GQA": {"train": {"rows": 123}, "test": {"rows": 45}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "tasks": tasks}))
    data = DataConfig(root=str(tmp_path), tasks=("GQA", "VizWiz"))
    found = samples_of(make_config(data=data))
    assert (found["GQA"].train, found["GQA"].test, found["GQA"].published) == (123, 45, False)
    assert found["VizWiz"].published
    on_the_hub = replace(data, root="hf://datasets/nobody/nothing")
    assert samples_of(make_config(data=on_the_hub))["GQA"].published


# The page


def test_the_store_takes_the_planned_bytes(tmp_path: Path) -> None:
    config = parse(["--config", str(MINI), "--data.tasks=[GQA,VizWiz]", "--model.dtype=bfloat16"])
    plan = make_plan(config, PlanConfig())
    base, _ = load_base(str(MINI_BASE), dtype=torch.bfloat16)
    locator = replace(config.locator, steps=2)
    model = GrowingVLM(base, locator=locator)
    store = create_store(tmp_path, model, name="mini", revision="local", config={})
    for task, grown in zip(config.data.tasks, plan.growth, strict=True):
        model.grow(task, grown, rank=config.experts.rank, lora_alpha=8, seed=0)
        entry = model.bank.fit(torch.randn(12, plan.shape.width), seed=0)
        store.append(model.commit(entry))
    written = sum(f.size for record in store.records() for f in record.files.values())
    assert plan.stored < written < 1.1 * plan.stored, "the files' headers come on top"


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
