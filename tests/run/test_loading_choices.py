"""How a base is loaded: a stream on a quantised one, and what is refused before Ray starts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from support.mini_store import LOCATOR, make_primitive
from support.workers import FolderLink, Stops, run_group, small_config

from cmoe.common import packages
from cmoe.common.errors import RunError
from cmoe.common.group import Group
from cmoe.config.settings import ClusterConfig
from cmoe.config.tree import RunConfig
from cmoe.data.samples import Task
from cmoe.methods.registry import method_entry
from cmoe.methods.settings import LoRAConfig, MoELoRAConfig
from cmoe.mini.tasks import ensure_data
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE, ModelConfig, Quantization
from cmoe.run.launch import check_model
from cmoe.run.stream import run_stream
from cmoe.serving.engines.builtin.executor import BuiltinExecutor
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store
from cmoe.store.model import create_store

HALF = {"dtype": "bfloat16"}


def configured(root: Path, name: str) -> RunConfig:
    small = small_config(root, name, method="expand_all")
    config = replace(
        small,
        model=ModelConfig(quantization="nf4"),
        data=replace(small.data, tasks=small.data.tasks[:2], train_samples=24, test_samples=4),
        experts=replace(small.experts, usage_samples=4),
        training=replace(
            small.training, steps=4, global_batch=8, micro_batch=4, checkpoint_every=2
        ),
        evaluation=replace(small.evaluation, max_new_tokens=3),
    )
    ensure_data(config.data)
    config.folder.mkdir(parents=True, exist_ok=True)
    return config


def streams(group: Group, whole: RunConfig, stopped: RunConfig) -> None:
    """One after the other in the same process."""
    with pytest.raises(KeyError, match="stopped"):
        run_stream(stopped, group, Stops(group, stopped.folder / "checkpoint"))
    for config in (whole, stopped):
        run_stream(config, group, FolderLink(group, config.folder / "checkpoint"))


def test_a_quantised_base_goes_from_training_to_serving(tmp_path: Path) -> None:
    """Also where the training was interrupted."""
    pytest.importorskip("bitsandbytes")
    whole, stopped = configured(tmp_path, "whole"), configured(tmp_path, "stopped")
    run_group(1, streams, whole, stopped)
    store, again = (Store.open(config.folder / "store") for config in (whole, stopped))
    assert [r.files for r in again.records()] == [r.files for r in store.records()]
    experts = store.read(1).experts
    assert min(t.abs().max() for name, t in experts.items() if name.endswith(".B")) > 0
    saved = sum(f.stat().st_size for f in (whole.folder / "checkpoint").rglob("*") if f.is_file())
    assert saved < 6 * sum(t.nbytes for t in experts.values()), "a checkpoint without the base"
    served = asyncio.run(BuiltinExecutor.load(store, ServeConfig(store.url)))
    assert served.tasks == store.tasks


@pytest.mark.parametrize("kind", get_args(Quantization))
@pytest.mark.parametrize("method", ["lora", "moelora"])
def test_adapters_beside_packed_weights_are_of_the_bases_dtype(kind: Any, method: str) -> None:
    pytest.importorskip("bitsandbytes")
    base, _ = load_base(str(MINI_BASE), dtype=torch.bfloat16, quantization=kind)
    sections = {"lora": LoRAConfig(4, 8), "moelora": MoELoRAConfig(2, 4, 8)}
    entry = method_entry(method)
    made = entry.create(base, 0, {key: sections[key] for key in entry.sections})
    assert {p.dtype for p in made.trained().values()} == {torch.bfloat16}
    ids = torch.arange(40, 64).view(2, 12)
    made.module(input_ids=ids, labels=ids).loss.backward()
    grads = [p.grad for name, p in made.trained().items() if "lora_A" not in name]
    assert any(g is not None and g.norm() > 0 for g in grads)


def test_an_executor_takes_8_bits_for_rounding(tmp_path: Path, tasks: tuple[Task, ...]) -> None:
    """Answers in a batch differ from those alone by more than in float32."""
    pytest.importorskip("bitsandbytes")
    base, _ = load_base(str(MINI_BASE), quantization="int8")
    model = GrowingVLM(base, locator=LOCATOR)
    config = {"model": vars(ModelConfig(quantization="int8"))}
    store = create_store(tmp_path, model, name="mini", revision="default", config=config)
    store.append(make_primitive(model, tasks[0]))
    served = asyncio.run(BuiltinExecutor.load(store, ServeConfig(store.url)))
    assert served.tasks == store.tasks


@pytest.mark.parametrize(
    ("model", "gpu", "said"),
    [
        ({"quantization": "nf4"}, None, r"model.quantization is nf4, and bitsandbytes isn't inst"),
        ({"quantization": "int8"}, None, r"`pip install 'cmoe\[quantized\]'` installs it"),
        ({"attention": "flash_attention_2", **HALF}, False, r"flash_attention_2, which needs a G"),
        ({"attention": "flash_attention_2", **HALF}, True, r"and flash-attn isn't installed"),
    ],
)
def test_what_cant_be_loaded_here_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any, gpu: Any, said: str
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    config = small_config(
        tmp_path, "refused", model=ModelConfig(**model), cluster=ClusterConfig(gpu=gpu)
    )
    with pytest.raises(RunError, match=said):
        check_model(config)
