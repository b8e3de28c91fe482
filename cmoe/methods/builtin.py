"""cmoe's own methods: the name of each, what is known of it, and the class that it becomes.

A class is imported when its method is made: reading a configuration stays light.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cmoe.methods.entry import register_method
from cmoe.methods.settings import (
    EWCConfig,
    ExpertsConfig,
    HiDeConfig,
    LoRAConfig,
    LwFConfig,
    MoELoRAConfig,
    OLoRAConfig,
    ProbeConfig,
    ReplayConfig,
)
from cmoe.modeling.settings import LocatorConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cmoe.methods.method import Method

GROWING = {"experts": ExpertsConfig, "probe": ProbeConfig, "locator": LocatorConfig}


@register_method("zero_shot", about="the base alone, which learns nothing")
def zero_shot(base: PreTrainedModel, seed: int) -> Method:
    from cmoe.methods.baselines.zero_shot import ZeroShot

    return ZeroShot(base)


@register_method(
    "lora",
    about="one LoRA that goes on training from task to task",
    sections={"lora": LoRAConfig},
    formula="one adapter",
)
def lora(base: PreTrainedModel, seed: int, lora: LoRAConfig) -> Method:
    from cmoe.methods.lora import SequentialLoRA

    return SequentialLoRA(base, lora, seed)


@register_method(
    "ewc",
    about="the same, held by a penalty where earlier tasks need it (Kirkpatrick et al. 2017)",
    sections={"lora": LoRAConfig, "ewc": EWCConfig},
    whole_weights=True,
)
def ewc(base: PreTrainedModel, seed: int, lora: LoRAConfig, ewc: EWCConfig) -> Method:
    from cmoe.methods.baselines.ewc import EWC

    return EWC(base, lora, ewc, seed)


@register_method(
    "lwf",
    about="the same, distilled from what it was before each task (Li & Hoiem 2016)",
    sections={"lora": LoRAConfig, "lwf": LwFConfig},
    whole_weights=True,
)
def lwf(base: PreTrainedModel, seed: int, lora: LoRAConfig, lwf: LwFConfig) -> Method:
    from cmoe.methods.baselines.lwf import LwF

    return LwF(base, lora, lwf, seed)


@register_method(
    "moelora",
    about="one mixture of LoRA experts that goes on training (as CoIN has it)",
    sections={"moelora": MoELoRAConfig},
)
def moelora(base: PreTrainedModel, seed: int, moelora: MoELoRAConfig) -> Method:
    from cmoe.methods.baselines.moelora import MoELoRA

    return MoELoRA(base, moelora, seed)


@register_method(
    "olora",
    about="a LoRA for every task, orthogonal to those before it, and their sum (Wang et al. 2023)",
    sections={"lora": LoRAConfig, "olora": OLoRAConfig},
    whole_weights=True,
)
def olora(base: PreTrainedModel, seed: int, lora: LoRAConfig, olora: OLoRAConfig) -> Method:
    from cmoe.methods.baselines.olora import OLoRA

    return OLoRA(base, lora, olora, seed)


@register_method(
    "hide_llava",
    about="a LoRA for every task, fused but for the last layer, where they are weighed by sample "
    "(HiDe-LLaVA, Guo et al. 2025)",
    sections={"lora": LoRAConfig, "hide": HiDeConfig},
    whole_weights=True,
)
def hide_llava(base: PreTrainedModel, seed: int, lora: LoRAConfig, hide: HiDeConfig) -> Method:
    from cmoe.methods.baselines.hide_llava import HiDeLLaVA

    return HiDeLLaVA(base, lora, hide, seed)


@register_method(
    "replay",
    about="one LoRA that goes on training, on kept samples of earlier tasks as well",
    sections={"lora": LoRAConfig, "replay": ReplayConfig},
    told="samples of earlier tasks",
)
def replay(base: PreTrainedModel, seed: int, lora: LoRAConfig, replay: ReplayConfig) -> Method:
    from cmoe.methods.baselines.replay import Replay

    return Replay(base, lora, replay, seed)


@register_method(
    "per_task_lora",
    about="a LoRA for every task, and whoever asks names the task",
    sections={"lora": LoRAConfig},
    told="the task",
    whole_weights=True,
)
def per_task_lora(base: PreTrainedModel, seed: int, lora: LoRAConfig) -> Method:
    from cmoe.methods.baselines.per_task_lora import PerTaskLoRA

    return PerTaskLoRA(base, lora, seed)


@register_method(
    "located_lora",
    about="a LoRA for every task, and cmoe's locator finds the task: the simplest rival",
    sections={"lora": LoRAConfig, "locator": LocatorConfig},
    locates=True,
    whole_weights=True,
)
def located_lora(
    base: PreTrainedModel, seed: int, lora: LoRAConfig, locator: LocatorConfig
) -> Method:
    from cmoe.methods.baselines.located_lora import LocatedLoRA

    return LocatedLoRA(base, lora, locator, seed)


@register_method(
    "multitask",
    about="one LoRA that learns all tasks at once",
    sections={"lora": LoRAConfig},
    told="all tasks at once",
)
def multitask(base: PreTrainedModel, seed: int, lora: LoRAConfig) -> Method:
    from cmoe.methods.baselines.multitask import JointLoRA

    return JointLoRA(base, lora, seed)


@register_method(
    "expand_all",
    about="cmoe without probes: every layer grows for every task, from fresh experts",
    sections=GROWING,
    locates=True,
    formula="experts everywhere",
)
def expand_all(base: PreTrainedModel, seed: int, *, probe: ProbeConfig, **sections: Any) -> Method:
    return cmoe(base, seed, probe=replace(probe, enabled=False), **sections)


@register_method(
    "cmoe",
    about="experts where probes say so, routers by task, and a locator (LLaVA-CMoE)",
    sections=GROWING,
    locates=True,
    formula="probed experts",
)
def cmoe(
    base: PreTrainedModel,
    seed: int,
    experts: ExpertsConfig,
    probe: ProbeConfig,
    locator: LocatorConfig,
) -> Method:
    from cmoe.methods.cmoe import CMoE

    return CMoE(base, experts, probe, locator, seed)
