"""Sections of a configuration that belong to no other room: workers, tracking, and the plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from cmoe.common.bounds import require
from cmoe.config.environment import as_environment


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
        environment: Environment variables of every worker, there before torch and NCCL start:
            `NCCL_SOCKET_IFNAME`, `GLOO_SOCKET_IFNAME` and the like. No keys: Ray shows them.
        address: Of a running Ray cluster; null takes `RAY_ADDRESS`, or starts Ray here.
    """

    workers: int = 2
    min_workers: int | None = None
    resize_s: float = 60.0
    gpu: bool | None = None
    cpus_per_worker: int = 1
    max_failures: int = 3
    timeout_s: int = 1800
    environment: dict[str, str | int | float] = field(default_factory=dict)
    address: str | None = None

    def __post_init__(self) -> None:
        variables = as_environment(self.environment, "cluster.environment")
        object.__setattr__(self, "environment", variables)
        require(self, "cluster", "workers", "cpus_per_worker", least=1)
        require(self, "cluster", "max_failures", least=0)
        require(self, "cluster", "timeout_s", least=60)
        require(self, "cluster", "resize_s", above=0)
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(
                f"cluster.min_workers is {self.min_workers}; 1 to cluster.workers, {self.workers}"
            )

    @property
    def runtime_env(self) -> dict[str, dict[str, str]]:
        """What Ray starts each worker with."""
        return {"env_vars": {name: str(value) for name, value in self.environment.items()}}


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
class MlflowConfig:
    """MLflow; a server's user and password come from MLFLOW_TRACKING_USERNAME and _PASSWORD.

    Attributes:
        uri: Of the tracking server, or of a database; null takes MLFLOW_TRACKING_URI, or else
            `mlflow.db` in the folder of all runs.
        experiment: Where the run appears.
    """

    uri: str | None = None
    experiment: str = "cmoe"

    def __post_init__(self) -> None:
        if self.uri is not None and urlsplit(self.uri).password is not None:
            raise ValueError(
                "mlflow.uri holds a password, which would be kept with the run; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI"
            )


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
