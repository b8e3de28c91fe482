"""A run is one tree of frozen dataclasses, each owned by the part that it configures.

YAML files, flags (`--probe.alpha 0.3`) and help are made of it by jsonargparse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_type_hints

from cmoe.common.bounds import require
from cmoe.common.command_line import refuse
from cmoe.common.storage import S3, is_remote
from cmoe.data.settings import DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.methods.settings import (
    EWCConfig,
    ExpertsConfig,
    LoRAConfig,
    LwFConfig,
    MoELoRAConfig,
    ProbeConfig,
)
from cmoe.mini.base_path import MINI_BASE
from cmoe.modeling.settings import MIN_SAMPLES, LocatorConfig
from cmoe.training.settings import TrainingConfig

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from cmoe.config.parser import ConfigParser

Made = TypeVar("Made")
MethodName = Literal[
    "zero_shot",
    "lora",
    "ewc",
    "lwf",
    "moelora",
    "per_task_lora",
    "multitask",
    "expand_all",
    "cmoe",
]
PLANNED = ("cmoe", "expand_all", "lora")  # methods that --plan knows
WHOLE = ("ewc", "lwf", "per_task_lora")  # methods that weigh or exchange weights as a whole
LOCATING = ("cmoe", "expand_all")  # methods that find a sample's task themselves
# What may differ when a run goes on: it changes where and how fast, not what comes out.
NEUTRAL = ("runs", "cluster", "wandb")


@dataclass(frozen=True)
class ModelConfig:
    """The frozen base.

    Attributes:
        name: Hub name or local path; `mini` is the base that comes with cmoe.
        revision: Of a hub name; null takes the default branch's.
        dtype: Of weights and activations.
        pad: Pad pictures to a square first, as CoIN does, also where the base's own processor
            crops them, as that of LLaVA-1.5 on the hub does; in training and answering alike.
    """

    name: str = "mini"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    pad: bool = False

    @property
    def path(self) -> str:
        """What transformers loads."""
        return str(MINI_BASE) if self.name == "mini" else self.name


@dataclass(frozen=True)
class ClusterConfig:
    """The worker group.

    Attributes:
        workers: Processes that share the work; with GPUs one each.
        min_workers: So few of them go on where machines are lost, and grow again; null waits until
            all are there. Checkpoints are converted, and a step's samples stay the same.
        resize_s: Seconds between two looks for more workers, while fewer than `workers` run.
        gpu: Whether they have GPUs; null takes them where the cluster has any.
        cpus_per_worker: CPU cores reserved for each, and its threads.
        max_failures: Lost worker groups that a run survives.
        timeout_s: Seconds that a worker waits for the others, in any collective; then those that
            didn't come count as lost. Rank 0 alone fits locators and commits: leave it time.
        address: Of a running Ray cluster; null takes `RAY_ADDRESS`, or starts Ray here.
    """

    workers: int = 2
    min_workers: int | None = None
    resize_s: float = 60.0
    gpu: bool | None = None
    cpus_per_worker: int = 1
    max_failures: int = 3
    timeout_s: int = 1800
    address: str | None = None

    def __post_init__(self) -> None:
        require(self, "cluster", "workers", "cpus_per_worker", least=1)
        require(self, "cluster", "max_failures", least=0)
        require(self, "cluster", "timeout_s", least=60)
        require(self, "cluster", "resize_s", above=0)
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(
                f"cluster.min_workers is {self.min_workers}; 1 to cluster.workers, {self.workers}"
            )


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases; its key comes from the environment or its own login.

    Attributes:
        mode: `online`, `offline` into the run's folder, or `disabled`.
        project: Where the run appears.
    """

    mode: Literal["online", "offline", "disabled"] = "disabled"
    project: str = "cmoe"


@dataclass(frozen=True)
class PlanConfig:
    """What a run is planned for. No part of the run: it changes nothing, and isn't kept.

    Attributes:
        gpus: GPUs, one worker each; null takes `cluster.workers`.
        memory: GiB of each.
        flops: Operations per second that each achieves. An assumption: the default is a third of
            an A100's peak in bfloat16, a tenth of an H100's.
    """

    gpus: int | None = None
    memory: float = 80.0
    flops: float = 1e14

    def __post_init__(self) -> None:
        require(self, "plan", "gpus", least=1)
        require(self, "plan", "memory", "flops", above=0)


@dataclass(frozen=True)
class RunConfig:
    """One run of a stream of tasks.

    Attributes:
        name: Of the run and of its folder; the same name goes on with the same run.
        runs: Folder of all runs, or `s3://bucket/prefix`. Several machines need the latter, or a
            folder that all of them share.
        method: What learns: `cmoe`; `expand_all`, the same without probes: every layer grows; or a
            rival: `lora` (one adapter that goes on training), `ewc`, `lwf` (the same, held by a
            term of the loss), `moelora` (a mixture of adapters), `zero_shot` (the base alone).
            Bounds are `per_task_lora` (told the task) and `multitask` (all tasks at once).
        seed: Of every random choice.
        model: The frozen base.
        data: The stream's tasks.
        experts: Of `cmoe`: what a task adds.
        probe: Of `cmoe`: where it is added.
        locator: Of `cmoe`: how a sample's task is found.
        lora: Of `lora`, `ewc`, `lwf`, `per_task_lora` and `multitask`: the adapter.
        ewc: Of `ewc`: the penalty.
        lwf: Of `lwf`: the distillation.
        moelora: Of `moelora`: the adapter.
        training: How a task is trained.
        evaluation: How test samples are answered.
        cluster: Who does the work.
        wandb: Tracking.
    """

    name: str
    runs: str = "runs"
    method: MethodName = "cmoe"
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
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"name is {self.name!r}; one folder's name is needed")
        if is_remote(self.runs) and not self.runs.startswith(S3):
            raise ValueError(f"runs is {self.runs!r}; a folder, or {S3}bucket/prefix")
        if self.method in WHOLE and self.training.zero == 3:
            raise ValueError(
                f"training.zero is 3; method {self.method} needs whole weights: 0, 1 or 2"
            )
        self.training.accumulation(self.cluster.workers)

    @property
    def least_samples(self) -> int:
        """Training samples that each task needs at least: a locator is fitted to them."""
        return MIN_SAMPLES if self.method in LOCATING else 1

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
        """Plain values, as YAML and JSON have them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def parse(arguments: Sequence[str] | None = None, prog: str | None = None) -> RunConfig:
    """The run that a command line asks for; wrong keys and values end the program with status 2.

    Args:
        arguments: Instead of the process's own.
        prog: Name in the help.
    """
    return parse_with({}, arguments, prog)[0]


def parse_job(
    parts: Mapping[str, type[Any]], arguments: Sequence[str] | None = None, prog: str | None = None
) -> tuple[RunConfig, PlanConfig | None, dict[str, Any]]:
    """As `parse_with`, and with `--plan`: what the run is to be planned for instead of started.

    A planned run has as many workers as the plan has GPUs.
    """
    from cmoe.config.keys import tree_of
    from cmoe.config.parser import ConfigError

    parser = _parser(prog, parts)
    # The plan alone may be bare: `--plan`, `--plan.gpus 8`.
    parser.add_argument(
        "--plan",
        type=PlanConfig | None,
        nargs="?",
        const={},
        default=None,
        help="Print what the run would need instead of starting it; see --plan.help.",
    )
    parser.tree["plan"] = tree_of(PlanConfig)
    try:
        parsed = parser.parse_args(arguments)
        asked = parsed.pop("plan")
        plan: PlanConfig | None = None
        problems: list[str] = []
        if asked is not None:
            plan = _made(PlanConfig, asked, problems)
        if plan is not None and plan.gpus is not None:
            parsed["cluster.workers"] = plan.gpus
        run, more = _run(parser, parsed, parts, problems)
        if plan is not None and run.method not in PLANNED:
            parser.refuse([f"method is {run.method}; --plan knows {', '.join(PLANNED)}"])
    except ConfigError as mistakes:
        refuse(parser.prog, mistakes.problems)
    return run, plan, more


def parse_with(
    parts: Mapping[str, type[Any]], arguments: Sequence[str] | None = None, prog: str | None = None
) -> tuple[RunConfig, dict[str, Any]]:
    """As `parse`, with further sections beside the run's own.

    Args:
        parts: The dataclass of each section; that of "" has its keys beside the run's own.
        arguments: Instead of the process's own.
        prog: Name in the help.
    """
    from cmoe.config.parser import ConfigError

    parser = _parser(prog, parts)
    try:
        return _run(parser, parser.parse_args(arguments), parts, [])
    except ConfigError as mistakes:
        refuse(parser.prog, mistakes.problems)


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """A run with other settings, by their keys as on the command line.

    Raises:
        ValueError: There is no such key, or its value is impossible.
    """
    from cmoe.config.keys import key_type, unknown_key, wrong_type
    from cmoe.config.parser import ConfigError

    parser = _changes()
    values = config.as_dict()
    for key, value in settings.items():
        hint = key_type(parser.tree, key)
        if hint is None:
            raise ValueError(unknown_key(key, parser.tree, repr(key)))
        if problem := wrong_type(key, hint, value):
            raise ValueError(problem)
        *path, last = key.split(".")
        within = values
        for name in path:
            within = within[name]
        within[last] = value
    try:
        return _run(parser, parser.parse_object(values), {}, [])[0]
    except ConfigError as mistakes:
        raise ValueError(str(mistakes)) from mistakes


@cache
def _changes() -> ConfigParser:
    """What `changed` reads with: making it takes longer than all that it does then."""
    return _parser(None, {})


def _parser(prog: str | None, parts: Mapping[str, type[Any]]) -> ConfigParser:
    from cmoe.config.parser import ConfigParser

    parser = ConfigParser(prog=prog, description="Learn a stream of tasks.", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file; later flags override it.")
    parser.add_settings(RunConfig)
    for name, part in parts.items():
        parser.add_settings(part, name)
    return parser


def _run(
    parser: ConfigParser, parsed: Namespace, parts: Mapping[str, type[Any]], problems: list[str]
) -> tuple[RunConfig, dict[str, Any]]:
    """The run, and the sections beside its own.

    Args:
        parser: What read them.
        parsed: The values.
        parts: As of `parse_with`.
        problems: What is known to be wrong already.

    Raises:
        ConfigError: Some value can't be.
    """
    nulls = [k for n, kind in [("", RunConfig), *parts.items()] for k in _nulls(parsed, kind, n)]
    if nulls:
        parser.refuse([f"{key} is null; a value is needed" for key in nulls])
    more = {
        name: _made(part, parsed[name] if name else parsed, problems)
        for name, part in parts.items()
    }
    made = {}
    for name, hint in get_type_hints(RunConfig).items():
        section = isinstance(hint, type) and is_dataclass(hint)
        made[name] = _made(hint, parsed[name], problems) if section else parsed[name]
    run = None if problems else _made(RunConfig, made, problems)
    if run is None:
        parser.refuse(problems)
    return run, more


def _made(
    kind: type[Made], values: Mapping[str, Any] | Namespace, problems: list[str]
) -> Made | None:
    """Settings of such values, or else None and a problem more."""
    try:
        return kind(**{each.name: values[each.name] for each in fields(kind)})  # type: ignore[arg-type]
    except ValueError as error:
        problems.append(str(error))
        return None


def _nulls(values: Namespace, part: type[Any], section: str = "") -> Iterator[str]:
    """Keys that are null and can't be: jsonargparse takes null in a file for no value at all."""
    for name, hint in get_type_hints(part).items():
        key = f"{section}.{name}" if section else name
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _nulls(values, hint, key)
        elif values[key] is None and type(None) not in get_args(hint):
            yield key


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys in which two runs differ, with both values; neutral parts aside."""
    old, new = by_key(before), by_key(after)
    keys = sorted({*old, *new})
    return [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]


def by_key(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings by their keys as on the command line; neutral parts aside."""
    flat = _flat(values)
    return {key: value for key, value in flat.items() if key.split(".")[0] not in NEUTRAL}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat
