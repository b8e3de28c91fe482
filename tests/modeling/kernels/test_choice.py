"""Where kernels compute: by setting, device and form of the FFN; what can't be had is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.devices import DEVICE
from support.grown import grown
from support.tiny_models import make_base, make_inputs
from torch import Tensor, nn

from cmoe.common.errors import RunError
from cmoe.config.tree import RunConfig
from cmoe.modeling.base import UnsupportedModelError, find_ffns
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.kernels import choice, functions, trial
from cmoe.modeling.settings import ModelConfig
from cmoe.run.launch import check_model
from cmoe.run.stream import make_method
from cmoe.training.settings import TrainingConfig


class Scaled(nn.Module):
    """As a Llama's FFN by its names, but for what `scale` and `inner` do."""

    def __init__(self, scale: float = 1.0, inner: Any = None) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 6), nn.Linear(4, 6)
        self.down_proj, self.act_fn = nn.Linear(6, 4), inner or nn.SiLU()
        self.scale = scale

    def forward(self, u: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(u)) * self.up_proj(u) * self.scale)
        return out


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl", "smolvlm"])
def test_the_ffns_of_common_bases_are_of_the_form(family: str) -> None:
    assert all(choice.is_swiglu(site.module) for site in find_ffns(make_base(family)))


def test_an_ffn_of_the_same_names_that_does_more_is_not_of_the_form() -> None:
    assert choice.is_swiglu(Scaled())
    assert not choice.is_swiglu(Scaled(scale=0.5))
    assert not choice.is_swiglu(Scaled(inner=nn.GELU()))
    assert not choice.is_swiglu(nn.Sequential(nn.Linear(4, 4), nn.SiLU()))


def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from cmoe.modeling.kernels import launch

    seen: list[int] = []
    shrink = launch.shrink

    def counted(u: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(u))
        return shrink(u, *args, **kwargs)

    monkeypatch.setattr(launch, "shrink", counted)
    return seen


def test_kernels_run_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, seen = grown(), make_inputs(), launches(monkeypatch)
    model.use_kernels("triton")
    model(inputs, "fourth")
    assert len(seen) == 2 * 4, "gate and up, and down, of four layers"
    seen.clear()
    model.use_kernels("torch")
    model(inputs, "fourth")
    assert seen == []
    model.use_kernels("auto")
    model(inputs, "fourth")
    assert bool(seen) == (DEVICE.type == "cuda"), "the interpreter is for those who ask for it"
    model.use_kernels("triton")
    seen.clear()
    for parameter in model.parameters():  # as ZeRO 3 marks what it shards
        parameter.ds_id = 0  # type: ignore[attr-defined]
    model(inputs, "fourth")
    assert seen == []


def test_kernels_that_cant_be_had_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_base()
    other.get_decoder().layers[1].mlp.act_fn = nn.GELU()
    with pytest.raises(UnsupportedModelError, match="kernels is triton, and the FFN of layer 1"):
        GrowingVLM(other).use_kernels("triton")
    config = RunConfig(name="x", model=ModelConfig(kernels="triton"))
    check_model(config)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu = GrowingVLM(make_base().to("cpu"))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="need a CUDA GPU; set auto or torch"):
        cpu.use_kernels("triton")
    monkeypatch.setattr(choice, "installed", lambda: False)
    with pytest.raises(RunError, match=r"model\.kernels is triton, and triton isn't installed"):
        check_model(config)
    cpu.use_kernels("auto")
    assert not choice.on(torch.device("cuda"), "auto")


def test_kernels_and_zero_3_are_refused_together() -> None:
    with pytest.raises(ValueError, match=r"model\.kernels is triton and training\.zero is 3"):
        RunConfig(name="x", model=ModelConfig(kernels="triton"), training=TrainingConfig(zero=3))


def test_a_runs_setting_reaches_its_model() -> None:
    for kernels in ("auto", "torch", "triton"):
        config = RunConfig(name="x", model=ModelConfig(kernels=kernels))  # type: ignore[arg-type]
        module = make_method(config, make_base()).module
        assert isinstance(module, GrowingVLM)
        assert {ffn.kernels for ffn in module.ffns} == {kernels}


def test_kernels_are_tried_beside_their_formulas_before_auto_takes_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert trial.difference(DEVICE) < choice.MOST_APART / 2
    choice.tried.cache_clear()
    assert choice.tried(DEVICE)
    assert not caplog.records

    def off(*args: Any) -> Tensor:
        return 1.1 * torch.ones_like(args[0])

    def broken(*args: Any) -> Tensor:
        raise RuntimeError("PassManager::run failed")

    for wrong, said in ((off, "off, torch computes"), (broken, "PassManager::run failed")):
        choice.tried.cache_clear()
        with monkeypatch.context() as patched:
            patched.setattr(functions, "expand_swiglu", wrong)
            assert not choice.tried(DEVICE)
        assert said in caplog.text
    choice.tried.cache_clear()
