"""What a method has learned, as LoRAs: PEFT itself is the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from support.plain_trainer import PlainTrainer, make_samples
from support.tiny_models import CONFIGS, make_base, make_inputs
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from cmoe.exports.folders import write_peft
from cmoe.exports.loras import loras
from cmoe.methods.baselines.ewc import EWC
from cmoe.methods.baselines.hide_llava import HiDeLLaVA
from cmoe.methods.baselines.located_lora import LocatedLoRA
from cmoe.methods.baselines.lwf import LwF
from cmoe.methods.baselines.moelora import MoELoRA
from cmoe.methods.baselines.multitask import JointLoRA
from cmoe.methods.baselines.olora import OLoRA
from cmoe.methods.baselines.per_task_lora import PerTaskLoRA
from cmoe.methods.baselines.replay import Replay
from cmoe.methods.baselines.zero_shot import ZeroShot
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.settings import (
    EWCConfig,
    HiDeConfig,
    LoRAConfig,
    LwFConfig,
    MoELoRAConfig,
    OLoRAConfig,
    ReplayConfig,
)
from cmoe.modeling.fixed import NotFixedError
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.settings import LocatorConfig

LORA = LoRAConfig(rank=2, lora_alpha=3)
LOCATOR = LocatorConfig(layer=1, score="mahalanobis")
ONE: dict[str, Callable[[Any], Any]] = {
    "lora": lambda base: SequentialLoRA(base, LORA, 0),
    "ewc": lambda base: EWC(base, LORA, EWCConfig(samples=2), 0),
    "lwf": lambda base: LwF(base, LORA, LwFConfig(), 0),
    "replay": lambda base: Replay(base, LORA, ReplayConfig(4), 0),
    "multitask": lambda base: JointLoRA(base, LORA, 0),
}
EACH: dict[str, Callable[[Any], Any]] = {
    "per_task_lora": lambda base: PerTaskLoRA(base, LORA, 0),
    "located_lora": lambda base: LocatedLoRA(base, LORA, LOCATOR, 0),
}
TASKS = ("one", "two")
SAMPLES = dict(zip(TASKS, (make_samples(16), make_samples(16, 100)), strict=True))


def learned(method: Any) -> Any:
    """A log of two tasks."""
    primitives = [
        method.learn(task, samples, PlainTrainer(method.module, steps=3, earlier=SAMPLES))
        for task, samples in SAMPLES.items()
    ]
    return log_of(primitives)


def log_of(primitives: list[Any]) -> Any:
    return SimpleNamespace(
        tasks=tuple(p.task for p in primitives), read=lambda index: primitives[index]
    )


def shape(family: str = "llava") -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(CONFIGS[family][0]())


def logits_of(found: Any, folder: Path, base: PreTrainedModel, family: str = "llava") -> Tensor:
    """What PEFT's own model says, from the folder that was written."""
    write_peft(folder, found(), shape(family), name="owner/base", revision="v1")
    tuned = PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        return tuned(**make_inputs(family)).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*ONE, *EACH])
def test_peft_says_the_same_to_the_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    method = {**ONE, **EACH}[name](make_base().to(dtype))
    log = learned(method)
    found = loras(log, method.settings(), shape, count=2)
    assert tuple(found) == (("",) if name in ONE else TASKS)
    with torch.no_grad():
        untouched = make_base().to(dtype)(**make_inputs()).logits
    for task, updates in found.items():
        index = TASKS.index(task) if task else 0 if name == "multitask" else 1
        theirs = logits_of(updates, tmp_path / f"at{task}", make_base().to(dtype))
        method._take(1 if name in ONE else index)
        with torch.no_grad():
            mine = method.module(**make_inputs()).logits
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, untouched)
        written = safetensors.torch.load_file(tmp_path / f"at{task}" / "adapter_model.safetensors")
        experts = log.read(index).experts
        assert written.keys() == experts.keys()
        assert all(torch.equal(written[key], experts[key]) for key in experts)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("maps", ["all", "ffn"])
def test_every_family_of_bases_has_its_names(family: str, maps: Any, tmp_path: Path) -> None:
    method = SequentialLoRA(make_base(family), LoRAConfig(rank=2, maps=maps), 0)
    with torch.no_grad():
        for p in method.trained().values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) / 8)
        mine = method.module(**make_inputs(family)).logits
    log = log_of([method._primitive("one", method._exported())])
    found = loras(log, method.settings(), lambda: shape(family), count=1)
    assert torch.equal(logits_of(found[""], tmp_path, make_base(family), family), mine)


def test_an_adapter_that_is_a_sum_says_what_the_sum_does(tmp_path: Path) -> None:
    method = OLoRA(make_base(), LORA, OLoRAConfig(), 0)
    log = learned(method)
    (found,) = loras(log, method.settings(), shape, count=2).values()
    with method._at_work({}), torch.no_grad():
        mine = method.module(**make_inputs()).logits
        latest = log.read(1).experts
    theirs = logits_of(found, tmp_path, make_base())
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    assert {u.scale for u in found().values()} == {LORA.lora_alpha / LORA.rank}
    assert all(len(u.A) == 2 * LORA.rank for u in found().values())
    alone = loras(log_of([log.read(0)]), method.settings(), shape, count=1)[""]()
    assert 2 * len(alone) == len(latest)
    assert all(len(u.A) == LORA.rank for u in alone.values())


def test_the_first_tasks_alone_have_the_adapter_of_their_last() -> None:
    method = ONE["lora"](make_base())
    log = learned(method)
    for count in (1, 2):
        updates = loras(log, method.settings(), shape, count=count)[""]()
        experts = log.read(count - 1).experts
        for name, update in updates.items():
            assert torch.equal(update.A, experts[f"base_model.model.{name}.lora_A.weight"])
            assert torch.equal(update.B, experts[f"base_model.model.{name}.lora_B.weight"])
        assert 2 * len(updates) == len(experts)


def grown(
    gates: Any,
    top_k: int,
    added: list[dict[int, int]],
    family: str = "llava",
    alphas: tuple[float, ...] = (3, 3, 3),
) -> tuple[GrowingVLM, Any]:
    """A model of tasks t0, t1 ... whose adapters of attention have a rank of their own; its log."""
    model = GrowingVLM(make_base(family), top_k=top_k, gates=gates, attention=4)
    rng = torch.Generator().manual_seed(0)
    primitives = []
    for task, experts in enumerate(added):
        before = f"t{task - 1}" if task else None
        parameters = model.grow(
            f"t{task}", experts, rank=2, lora_alpha=alphas[task], seed=task, builds_on=before
        )
        with torch.no_grad():
            for p in parameters:
                p.add_(torch.randn(p.shape, generator=rng) / 4)
        primitives.append(model.commit({}))
    return model, log_of(primitives)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    ("gates", "top_k", "added"),
    [
        ("residual", 2, [{0: 1, 2: 1}, {0: 1}, {1: 1}]),  # t1 builds on t0: both always work
        ("residual", 1, [{0: 2}, {0: 1, 3: 1}]),
        ("softmax", 2, [{1: 1}, {2: 1}]),  # a single expert of a layer has gate 1
    ],
)
def test_experts_that_always_work_are_pefts_lora(
    gates: str, top_k: int, added: list[dict[int, int]], family: str, tmp_path: Path
) -> None:
    model, log = grown(gates, top_k, added, family)
    found = loras(log, model.settings(), lambda: shape(family), count=len(added))
    assert tuple(found) == model.tasks
    for task, updates in found.items():
        theirs = logits_of(updates, tmp_path / task, make_base(family), family)
        with torch.no_grad():
            mine = model(make_inputs(family), task).logits
            untouched = model(make_inputs(family), -1).logits
        # The same weights; sums of several experts are in another order.
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        assert (mine - untouched).abs().max() > 1e-2


def test_a_router_that_weighs_tokens_is_refused_with_the_tasks_that_are_fit() -> None:
    model, log = grown("renormalized", 2, [{0: 1, 2: 1}, {0: 1}])
    arguments = (log, model.settings(), shape)
    refused = r"task 't1': the router of layer 0 weighs its 2 experts token by token.*each: t0"
    with pytest.raises(NotFixedError, match=refused):
        loras(*arguments, count=2)
    with pytest.raises(NotFixedError, match=refused):
        loras(*arguments, count=2, task="t1")
    assert tuple(loras(*arguments, count=2, task="t0")) == ("t0",)
    assert tuple(loras(*arguments, count=1)) == ("t0",)
    _, log = grown("residual", 2, [{0: 1}, {0: 1}], alphas=(3, 5))
    with pytest.raises(NotFixedError, match=r"its experts have the scales 1\.5, 2\.5.*each: t0"):
        loras(log, model.settings() | {"gates": "residual"}, shape, count=2)
    nothing, log = grown("residual", 2, [{}])
    with pytest.raises(NotFixedError, match="task 't0' adds nothing to the base"):
        loras(log, nothing.settings(), shape, count=1)


@pytest.mark.parametrize(
    ("make", "count", "task", "said"),
    [
        (lambda base: MoELoRA(base, MoELoRAConfig(2, 2, 4), 0), 2, None, "'moelora'.*by token"),
        (lambda base: HiDeLLaVA(base, LORA, HiDeConfig(), 0), 2, None, "'hide_llava'.*by sample"),
        (ZeroShot, 2, None, "method 'zero_shot': it has learned nothing"),
        (ONE["lora"], 2, "two", "'lora' has one adapter for all tasks; leave 'two' out"),
        (ONE["multitask"], 1, None, "learned all 2 tasks at once: there is no adapter after 1"),
        (EACH["per_task_lora"], 1, "two", "no task 'two' among one"),
    ],
)
def test_what_is_no_lora_is_refused_by_name(
    make: Any, count: int, task: str | None, said: str
) -> None:
    method = make(make_base())
    log = SimpleNamespace(tasks=TASKS, read=lambda index: pytest.fail("nothing need be read"))
    with pytest.raises(NotFixedError, match=said):
        loras(log, method.settings(), shape, count=count, task=task)


def test_a_strangers_method_that_keeps_something_else_is_refused_by_its_tensor() -> None:
    odd = MoELoRA(make_base(), MoELoRAConfig(2, 2, 4), 0)
    log = log_of([odd._primitive("one", odd._exported())])
    found = loras(log, {"method": "lora"}, shape, count=1)
    with pytest.raises(NotFixedError, match=r"\.A of task 'one' is no part of a LoRA"):
        found[""]()
    with pytest.raises(NotFixedError, match="method 'theirs': what it learns isn't known"):
        loras(log, {"method": "theirs"}, shape, count=1)
