"""The worker group on Ray Train: what it asks for, where it keeps checkpoints, how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmoe.common.errors import RunError
from cmoe.common.log_lines import in_json
from cmoe.common.storage import filesystem, is_remote
from cmoe.config.settings import ClusterConfig
from cmoe.config.tree import RunConfig
from cmoe.folder import TRAIN
from cmoe.run.board import Board
from cmoe.run.cluster import connect, named_cluster
from cmoe.run.display import Display
from cmoe.run.monitor import Follower, following
from cmoe.run.monitoring.lost_ray import losses_told
from cmoe.run.monitoring.metrics import RunMetrics
from cmoe.run.stalls import fitting, has, lacking, needed
from cmoe.run.worker import work

POLL_S = 0.2  # between two times that Ray Train's controller asks all workers how they are
POLLED_A_SECOND = 200  # workers at most, or so many would keep it busy with that
HEALTH_S = 600  # Ray Train's own limit for a worker's process that doesn't answer


def train(config: RunConfig, display: Display) -> None:
    """Let Ray Train carry the worker program, also over lost workers.

    Raises:
        RunError: The run failed for good, or this machine is too small for its workers.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cmoe.run.ray_trainer import Trainer
    from cmoe.run.train_failures import Reporter, causes, storage_failure

    cluster = config.cluster
    resources = worker_resources(cluster)
    gpu = "GPU" in resources
    least = cluster.min_workers or cluster.workers
    if named_cluster(cluster.address) is None:
        _require_room(least, resources)
    _limit_waiting(cluster.timeout_s)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # A process that is lost alone, for want of memory for example, comes back, and forgets.
    lasting = {"max_restarts": -1, "max_task_retries": -1}
    options = {"num_cpus": 0, "scheduling_strategy": here, **lasting}
    board: Any = ray.remote(Board).options(**options).remote()
    storage, path = _ray_storage(config.url)
    lost: TrainingFailedError | None = None
    trainer = Trainer(
        work,
        train_loop_config={"config": rooted(config), "board": board, "in_json": in_json()},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers
            if cluster.min_workers is None
            else (cluster.min_workers, cluster.workers),
            elastic_resize_monitor_interval_s=cluster.resize_s,
            use_gpu=gpu,
            resources_per_worker=resources,
        ),
        run_config=TrainRunConfig(
            name=TRAIN,
            storage_path=path,
            storage_filesystem=storage,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[Reporter(board)],  # type: ignore[list-item]
            worker_runtime_env=cluster.runtime_env,  # type: ignore[call-arg]
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=cluster.timeout_s),
    )
    follower = Follower(board, display, RunMetrics(config.name, display.standing), least, resources)
    try:
        with following(follower):
            trainer.fit()
    except TrainingFailedError as error:
        lost = error
    finally:
        cause = ray.get(board.cause.remote())
    if cause is not None:
        raise RunError(cause)
    if lost is not None:
        if (told := storage_failure(lost, f"{config.url}/{TRAIN}")) is not None:
            raise RunError(str(told)) from lost
        last = "; ".join(
            text if rank is None else f"worker {rank} {text}" for rank, text in causes(lost)
        )
        raise RunError(
            f"the workers failed more than {cluster.max_failures} times (cluster.max_failures); "
            f"the same command goes on from the last checkpoint. The last time: {last}"
        )


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """What each worker takes, by Ray's names, on the cluster that this process works on."""
    import ray

    gpu = ray.cluster_resources().get("GPU", 0) > 0 if cluster.gpu is None else cluster.gpu
    return {"CPU": float(cluster.cpus_per_worker)} | ({"GPU": 1.0} if gpu else {})


def _require_room(workers: int, each: Mapping[str, float]) -> None:
    """Refuse workers that the Ray which was started here will never have room for.

    Raises:
        RunError: Says what they need and what there is.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if (room := fitting(each, nodes)) < workers:
        raise RunError(
            f"{needed(workers, each)} are asked for; this machine has {has(each, nodes)}. "
            f"{lacking(room)} or name a cluster (cluster.address)"
        )


def _limit_waiting(seconds: int) -> None:
    """Give Ray Train's own collectives and looks at workers the same limit; workers inherit it."""
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(seconds)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(min(seconds, HEALTH_S))


def _ray_storage(url: str) -> tuple[Any, str]:
    """Where Ray keeps checkpoints, as it wants to be told: through the same patient door to S3."""
    if not is_remote(url):
        return None, str(Path(url).resolve())
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    fs, path = filesystem(url)
    return PyFileSystem(FSSpecHandler(fs)), path


def rooted(config: RunConfig) -> RunConfig:
    """The same run for a process that works in another folder."""
    name = config.model.name
    local = str(Path(name).resolve()) if Path(name).is_dir() else name
    return replace(
        config,
        runs=_absolute(config.runs),
        model=replace(config.model, name=local),
        data=replace(config.data, root=_absolute(config.data.root)),
        evaluation=replace(
            config.evaluation,
            answer_files={
                task: str(Path(file).resolve())
                for task, file in config.evaluation.answer_files.items()
            },
        ),
    )


def _absolute(path: str) -> str:
    """A path that means the same in any working directory; a URL does already."""
    return path if is_remote(path) else str(Path(path).resolve())


@contextmanager
def session(config: RunConfig, *, dashboard: bool = False) -> Iterator[None]:
    """Ray for as long as the body runs: the cluster that a run names, or one that is started here.

    Within another session it is that one's.

    Raises:
        RunError: Ray can't be started or joined, or is lost while the body runs.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    _connect(config, dashboard)
    try:
        with losses_told():
            yield
    finally:
        ray.shutdown()


def _connect(config: RunConfig, dashboard: bool) -> None:
    # Before Ray is there: its processes inherit them.
    between = max(POLL_S, config.cluster.workers / POLLED_A_SECOND)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(between))
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    needed = config.cluster.workers * config.cluster.cpus_per_worker
    connect(
        config.cluster.address,
        num_cpus=max(needed, os.cpu_count() or 1),
        include_dashboard=dashboard,
    )
