"""A run is one tree of frozen dataclasses, each owned by the part that it configures.

`cmoe.config.parse` makes YAML keys, flags (`--probe.alpha 0.3`) and help of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cmoe.common.storage import S3, is_remote
from cmoe.config.method_sections import with_methods
from cmoe.config.settings import ClusterConfig, MlflowConfig, WandbConfig
from cmoe.data.settings import DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.methods.entry import MethodEntry
from cmoe.methods.registry import method_entry
from cmoe.methods.settings import (
    EWCConfig,
    ExpertsConfig,
    LoRAConfig,
    LwFConfig,
    MoELoRAConfig,
    ProbeConfig,
)
from cmoe.modeling.settings import MIN_SAMPLES, LocatorConfig, ModelConfig
from cmoe.tasks.registry import require_judged
from cmoe.training.settings import TrainingConfig


@dataclass(frozen=True)
@with_methods
class RunConfig:
    """One run of a stream of tasks.

    Attributes:
        name: Name of the run and of its folder; the same name resumes the same run.
        runs: Folder of all runs, or `s3://bucket/prefix`. Several machines need the latter, or a
            folder that all of them share.
        method: What learns the stream. `cmoe`; `expand_all`, the same without probes: every layer
            grows; a rival: `lora` (one adapter that goes on training), `ewc`, `lwf` (the same, held
            by a term of the loss), `moelora` (a mixture of adapters), `zero_shot` (the base alone).
            One adapter per task have `located_lora`, found by cmoe's locator, `olora`, orthogonal
            and summed, and `hide_llava`, fused but for the last layer. Told more are
            `per_task_lora` (the task), `multitask` (all tasks at once) and `replay` (samples of
            earlier tasks). `--help` lists all, those of installed packages too.
        seed: Of every random choice.
        model: The frozen base.
        data: The stream's tasks.
        experts: Of `cmoe`: what a task adds.
        probe: Of `cmoe`: where it is added.
        locator: Of `cmoe` and `located_lora`: how a sample's task is found.
        lora: Of all methods with `lora` in their names, `ewc`, `lwf`, `hide_llava`, `replay` and
            `multitask`, but not `moelora`: the adapter, a task's own where each has one.
        ewc: Of `ewc`: the penalty.
        lwf: Of `lwf`: the distillation.
        moelora: Of `moelora`: the adapter.
        training: How a task is trained.
        evaluation: How test samples are answered.
        cluster: Who does the work.
        trackers: What follows the run: `wandb`, `tensorboard` (event files in the run's folder) and
            `mlflow`. A `wandb.mode` other than disabled follows it, too.
        wandb: Tracking by W&B.
        mlflow: Tracking by MLflow.
    """

    name: str
    runs: str = "runs"
    method: str = "cmoe"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    locator: LocatorConfig = field(default_factory=LocatorConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    ewc: EWCConfig = field(default_factory=EWCConfig)
    lwf: LwFConfig = field(default_factory=LwFConfig)
    moelora: MoELoRAConfig = field(default_factory=MoELoRAConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    trackers: tuple[Literal["wandb", "tensorboard", "mlflow"], ...] = ()
    wandb: WandbConfig = field(default_factory=WandbConfig)
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)

    added_sections = frozenset[str]()
    """Keys of the sections that methods add to those above; no setting itself."""

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"name is {self.name!r}; one folder's name is needed")
        if is_remote(self.runs) and not self.runs.startswith(S3):
            raise ValueError(f"runs is {self.runs!r}; a folder, or {S3}bucket/prefix")
        require_judged(self.data)
        if self.entry.whole_weights and self.training.zero == 3:
            raise ValueError(
                f"training.zero is 3; method {self.method} needs whole weights: 0, 1 or 2"
            )
        if self.model.quantization and self.training.zero == 3:
            raise ValueError(
                "training.zero is 3, and DeepSpeed can't shard the weights of model.quantization "
                f"{self.model.quantization}: 0, 1 or 2"
            )
        if self.model.kernels == "triton" and self.training.zero == 3:
            raise ValueError(
                "model.kernels is triton and training.zero is 3: kernels read weights that ZeRO 3 "
                "shards; set kernels to auto or torch, or zero to 0, 1 or 2"
            )
        self.training.accumulation(self.cluster.workers)
        if "wandb" in self.trackers and self.wandb.mode == "disabled":
            raise ValueError(
                "trackers names wandb, and wandb.mode is disabled; online or offline is needed"
            )

    @property
    def entry(self) -> MethodEntry:
        """What is registered of the method.

        Raises:
            ValueError: There is no such method.
        """
        return method_entry(self.method)

    @property
    def followed(self) -> tuple[str, ...]:
        """The names of all trackers, each once."""
        wandb = () if self.wandb.mode == "disabled" else ("wandb",)
        return tuple(dict.fromkeys((*self.trackers, *wandb)))

    @property
    def method_sections(self) -> dict[str, Any]:
        """The sections that the method takes, by key."""
        return {key: getattr(self, key) for key in self.entry.sections}

    @property
    def least_samples(self) -> int:
        """Training samples that each task needs at least: a locator is fitted to them."""
        return MIN_SAMPLES if self.entry.locates else 1

    @property
    def url(self) -> str:
        """Where the run keeps everything: a path, or a prefix of S3."""
        return f"{self.runs.rstrip('/')}/{self.name}"

    @property
    def folder(self) -> Path:
        """The same as a path, where it is one.

        Raises:
            ValueError: It is on S3.
        """
        if is_remote(self.runs):
            raise ValueError(f"runs is {self.runs!r}; a folder is needed here")
        return Path(self.url)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON have them.

        An added section that says nothing is left out where another method learns: a run stays the
        same when a package is installed, or a method joins cmoe's own.
        """
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for key in self.added_sections - self.entry.sections.keys():
            section = getattr(self, key)
            if section == type(section)():
                del plain[key]
        return plain
