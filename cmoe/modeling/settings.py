"""The sections `model` and `locator` of a configuration: the frozen base, what finds a task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmoe.common.bounds import require

MIN_SAMPLES = 8
"""Training samples of a task that its locator entry needs at least."""

Pooling = Literal["last", "mean", "mean_text"]
Score = Literal["z", "raw", "mahalanobis"]
Placement = Literal["auto", "front", "inline"]
GateForm = Literal["renormalized", "softmax", "residual"]
Kernels = Literal["auto", "triton", "torch"]
Quantization = Literal["nf4", "int8"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
FLASH: Attention = "flash_attention_2"


MINI_BASE = Path(__file__).parents[1] / "mini" / "base"
"""Folder of the mini base, which comes with cmoe; it loads like any model of the hub."""


@dataclass(frozen=True)
class ModelConfig:
    """The frozen base.

    Attributes:
        name: Hub name, local path or `s3://bucket/prefix` of the base; `mini` is the base that
            comes with cmoe.
        revision: Of a hub name; null takes the default branch's.
        dtype: Of weights and activations.
        pad: Pad pictures to a square first, as CoIN does, also where the base's own processor
            crops them, as that of LLaVA-1.5 on the hub does; in training and answering alike.
        quantization: Keep the decoder's linear maps in 4 bits (`nf4`, as QLoRA does) or 8 (`int8`,
            as LLM.int8() does), by bitsandbytes; null keeps them in `dtype`. A store belongs to the
            base as it was quantised.
        attention: How attention is computed, as transformers names it; null leaves it to
            transformers, which takes `sdpa` where the base has it.
        kernels: What computes the experts: `triton`, kernels of our own, which need a CUDA GPU and
            an FFN of SwiGLU's form; `torch`; or `auto`, Triton's where they can be had.
    """

    name: str = "mini"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    pad: bool = False
    quantization: Quantization | None = None
    attention: Attention | None = None
    kernels: Kernels = "auto"

    def __post_init__(self) -> None:
        if self.attention == FLASH and self.dtype == "float32":
            raise ValueError(
                f"model.attention is {FLASH}, which computes in 16 bits alone, and model.dtype is "
                "float32; set bfloat16"
            )

    @property
    def path(self) -> str:
        """What transformers loads."""
        return str(MINI_BASE) if self.name == "mini" else self.name


@dataclass(frozen=True)
class LocatorConfig:
    """How samples are matched to tasks.

    Attributes:
        layer: The feature is the state that enters this decoder layer; -1 is the decoder's
            output behind its final norm (the paper's `F_end`).
        pooling: `last` prompt token (paper), `mean` over the prompt, `mean_text` over its text.
        score: `z`, the VAE's error in deviations of its own task's (paper); `raw`, that error
            in the feature's units; `mahalanobis`, under a pooled covariance.
        placement: `front`, the base runs up to the feature's layer first; `inline`, the answering
            pass computes the feature itself, which needs `layer` at or below the first layer
            with experts; `auto`, inline at layer 0, which no expert is below, else in front.
        paraphrases: In how many other ways each training prompt is asked for the fit, beside its
            own: as people ask, without the task's instruction, politely or in small letters.
        reject: A sample whose best score exceeds this quantile of its task's held-out scores is
            unknown.
        hidden: Width of the VAE's hidden layers.
        latent: Width of its code.
        beta: Weight of the KL term.
        steps: Training steps of a VAE.
        batch_size: Features per step.
        learning_rate: Of Adam, with cosine decay.
        held_out: Share of a task's features kept from training, to measure errors on.
        deviation_floor: Least deviation of a feature's dimension, in mean deviations of the task.
        shrinkage: Share of the mean variance in the pooled covariance's diagonal.
    """

    layer: int = -1
    pooling: Pooling = "last"
    score: Score = "z"
    placement: Placement = "auto"
    paraphrases: int = 1
    reject: float = 0.99
    hidden: int = 64
    latent: int = 16
    beta: float = 1e-3
    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 2e-3
    held_out: float = 0.15
    deviation_floor: float = 0.1
    shrinkage: float = 0.05

    def __post_init__(self) -> None:
        if self.placement == "inline" and self.layer < 0:
            raise ValueError(
                f"locator.placement is inline, and locator.layer {self.layer} is the decoder's "
                "output, which all experts are below; take a layer, or placement front"
            )
        require(self, "locator", "hidden", "latent", "steps", "batch_size", least=1)
        require(self, "locator", "learning_rate", above=0)
        require(self, "locator", "paraphrases", "beta", "deviation_floor", least=0)
        for name in ("reject", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"locator.{name} is {getattr(self, name)}; between 0 and 1")
        if not 0 <= self.shrinkage < 1:
            raise ValueError(f"locator.shrinkage is {self.shrinkage}; 0 or more, and less than 1")

    @property
    def inline(self) -> bool:
        """Whether the answering pass computes the feature."""
        return self.placement == "inline" or (self.placement == "auto" and self.layer == 0)


def slots(count: int, always: int, top_k: int) -> int:
    """How many of `count` experts a token uses, of which `always` work for all tokens.

    These, and others up to `top_k` in all.
    """
    return always + min(count - always, max(top_k - always, 0))
