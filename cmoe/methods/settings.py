"""What a method can be told, each a section of a run's configuration.

Nothing heavy is imported here: a job reads its configuration before it does anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cmoe.common.bounds import require
from cmoe.modeling.settings import GateForm

Score = Literal["frequency", "excess", "loss_gain"]
Rule = Literal["relative", "gain", "first", "middle", "last", "even", "random"]
Init = Literal["used", "probe", "fresh"]
BuildOn = Literal["none", "nearest"]


@dataclass(frozen=True)
class ExpertsConfig:
    """The experts of a task.

    Where the paper does otherwise than the default, that is said: with all of it, and `probe`'s, a
    run is the paper's.

    Attributes:
        rank: Of their LoRA pairs.
        lora_alpha: Their scale is `lora_alpha / rank`.
        top_k: Experts per token, those that always work included.
        gates: `renormalized` over a token's experts (paper); `softmax`, as the router has them; or
            `residual`: the task's own experts always work, and older ones are added with gates
            that begin at zero.
        per_layer: New experts in a layer that grows; the first task's in every layer.
        attention: Rank of the adapters that a layer's attention gains where its FFN grows; no
            router chooses among them, the sample's task does. 0 leaves attention alone.
        build_on: `nearest` lets a task build on an older one that answers its samples better than
            trained probes do: what always works for that one does for the new one, too. With `none`
            the router alone reuses what is there (paper).
        balance_weight: Weight of the balance loss, which is summed over layers.
        usage_samples: Training samples on which each expert's use is recorded.
    """

    rank: int = 8
    lora_alpha: float = 16.0
    top_k: int = 2
    gates: GateForm = "residual"
    per_layer: int = 1
    attention: int = 8
    build_on: BuildOn = "nearest"
    balance_weight: float = 0.01
    usage_samples: int = 256

    def __post_init__(self) -> None:
        require(self, "experts", "rank", "top_k", "per_layer", "usage_samples", least=1)
        require(self, "experts", "lora_alpha", above=0)
        require(self, "experts", "balance_weight", "attention", least=0)


@dataclass(frozen=True)
class ProbeConfig:
    """Where and how much to grow.

    Attributes:
        enabled: Whether to probe at all; without, every layer grows for every task.
        fraction: Share of the training samples that trains the probes; as many others measure.
        max_samples: At most this many in either share.
        gain_samples: At most this many measure what switching a layer's probes off costs: one
            pass over them per layer.
        experts: Probe experts per layer.
        steps: Training steps of the probes.
        rule: `relative` (paper), by `score` and `alpha`: some layer always grows. `gain`: a layer
            grows if its probes' gain exceeds its standard error and `min_gain`, and none if all of
            them together gain no more than three of theirs: the task adds its router alone. What
            those have to beat grows in `max_layers` layers: the `first`, the `middle` ones, the
            `last`, at `even` distances, or `random` ones.
        score: `frequency` (paper), `excess` over the uniform share, or `loss_gain`.
        alpha: A layer grows if its score exceeds mean - alpha * deviation over the layers; with
            null every layer passes, and the budgets alone decide.
        min_gain: Share of what all probes gain together that a layer's own have to gain.
        count: `fixed` adds `experts.per_layer`; `per_probe` as many as pass the threshold alone.
        init: New experts start from the experts most `used` while probing (paper), from the
            most used `probe` experts, or `fresh`.
        max_layers: At most this many layers grow, those of the highest scores.
        max_added_parameters: Experts and their router rows add at most this many scalars.
    """

    enabled: bool = True
    fraction: float = 0.1
    max_samples: int = 2000
    gain_samples: int = 256
    experts: int = 1
    steps: int = 50
    rule: Rule = "gain"
    score: Score = "frequency"
    alpha: float | None = 0.5
    min_gain: float = 0.0
    count: Literal["fixed", "per_probe"] = "fixed"
    init: Init = "probe"
    max_layers: int | None = None
    max_added_parameters: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 0.5:
            raise ValueError(f"probe.fraction is {self.fraction}; more than 0 and at most 0.5")
        require(self, "probe", "max_samples", "gain_samples", "experts", "steps", least=1)
        require(self, "probe", "max_layers", "max_added_parameters", "min_gain", least=0)
        if self.rule not in ("relative", "gain") and self.max_layers is None:
            raise ValueError(f"probe.rule is {self.rule}; it needs probe.max_layers, its count")


@dataclass(frozen=True)
class LoRAConfig:
    """LoRA on linear maps of the decoder.

    Attributes:
        rank: Of the adapter.
        lora_alpha: Its scale is `lora_alpha / rank`.
        maps: `all` of them, or those of the FFNs alone, which is where experts are.
    """

    rank: int = 16
    lora_alpha: int = 32
    maps: Literal["all", "ffn"] = "all"

    def __post_init__(self) -> None:
        require(self, "lora", "rank", "lora_alpha", least=1)


@dataclass(frozen=True)
class MoELoRAConfig:
    """A mixture of LoRA experts on every linear map of the decoder; CoIN's sizes by default.

    Attributes:
        experts: At each map; all of them work for every token.
        rank: Of each.
        lora_alpha: The scale of their sum is `lora_alpha / rank`.
    """

    experts: int = 8
    rank: int = 16
    lora_alpha: int = 32

    def __post_init__(self) -> None:
        require(self, "moelora", "experts", "rank", "lora_alpha", least=1)


@dataclass(frozen=True)
class EWCConfig:
    """Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796).

    Attributes:
        weight: Of the penalty, the paper's lambda; 400 is its choice for Atari.
        samples: Training samples of a task that its importances are measured on.
    """

    weight: float = 400.0
    samples: int = 256

    def __post_init__(self) -> None:
        require(self, "ewc", "weight", least=0)
        require(self, "ewc", "samples", least=1)


@dataclass(frozen=True)
class OLoRAConfig:
    """Orthogonal low-rank adaptation (Wang et al. 2023, arXiv 2310.14152).

    Attributes:
        weight: Of the overlap with earlier tasks' subspaces. 0.5 is the default of the authors'
            code, and the value of its scripts for the three standard orders.
    """

    weight: float = 0.5  # (C) github.com/cmnfriend/O-LoRA, src/run_uie_lora.py: lamda_1

    def __post_init__(self) -> None:
        require(self, "olora", "weight", least=0)


@dataclass(frozen=True)
class HiDeConfig:
    """HiDe-LLaVA (Guo et al. 2025, arXiv 2503.12941).

    Attributes:
        temperature: Similarities are divided by, before they become weights.
    """

    temperature: float = 0.1  # (C) github.com/Ghy0501/HiDe-LLaVA, llava/model/llava_arch.py

    def __post_init__(self) -> None:
        require(self, "hide", "temperature", above=0)


@dataclass(frozen=True)
class ReplayConfig:
    """Experience replay (Chaudhry et al. 2019, arXiv 1902.10486).

    Attributes:
        samples: Training samples that are kept of each task.
        share: Of what later tasks are trained on, for the kept samples of all earlier ones. A half
            is the paper's: as many from the memory as new ones in a step. An epoch goes over a
            task's own samples once and is longer by as much.
    """

    samples: int = 100
    share: float = 0.5  # (P)

    def __post_init__(self) -> None:
        require(self, "replay", "samples", least=1)
        if not 0 < self.share < 1:
            raise ValueError(f"replay.share is {self.share}; more than 0 and less than 1")


@dataclass(frozen=True)
class LwFConfig:
    """Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282).

    Attributes:
        weight: Of the distillation term, the paper's lambda_o.
        temperature: Both distributions are softened by, the paper's T.
    """

    weight: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        require(self, "lwf", "weight", least=0)
        require(self, "lwf", "temperature", above=0)
