"""Start a run on Ray Train, or go on with it; a finished run is left alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cmoe.cluster import connect, named_cluster
from cmoe.config import RunConfig, differences
from cmoe.data.coin import ensure_data, read_tasks
from cmoe.data.samples import DataError, Task
from cmoe.data.texts import reserved_tokens
from cmoe.evaluation.identity import DATA, claim_data, fingerprints
from cmoe.evaluation.report import HTML, write_report
from cmoe.evaluation.results import MATRIX
from cmoe.evaluation.run import APART, CONFIG, STAGES, STORE, TRAIN, read_config, read_matrix
from cmoe.evaluation.targets import stream_targets
from cmoe.files import WORKING_COPIES, whole
from cmoe.lease import LeaseError, held
from cmoe.mirror import Mirror, mirrored
from cmoe.modeling.base import UnsupportedModelError
from cmoe.modeling.pretrained import MissingModelError, load_processor, require_base
from cmoe.storage import StorageError, filesystem, is_remote, require_reachable
from cmoe.training.board import Board
from cmoe.training.display import LOG, Display, refused
from cmoe.training.following import Follower, following
from cmoe.training.remaining import remaining_of
from cmoe.training.watch import fitting, has, lacking, needed
from cmoe.training.worker import work

HEALTH_S = 600  # Ray Train's own limit for a worker's process that doesn't answer


class RunError(Exception):
    """A run can't start or go on; the message says why, and what would help."""


def run(config: RunConfig, show: Callable[[str], None] = print) -> dict[str, Any]:
    """Carry a run to its end.

    Args:
        config: The run. Its name decides whether one is begun, gone on with, or found finished.
        show: Receives what is to be read before the progress display is there.

    Returns:
        The contents of `matrix.json`.

    Raises:
        RunError: Another configuration has this name, another job drives the run, its folder can't
            be used, or the run failed for good.
        DataError: The data is missing, wrong, or not what the run began with; or a file of the
            run's folder is damaged.
        KeyboardInterrupt: Ctrl-C, or SIGTERM.
    """
    require_lasting(config.runs)
    try:
        if (found := read_finished(config)) is not None:
            show(f"{config.url}: this run is finished; another name starts another run")
            return found
        with _ending_on_sigterm(), held(config.url, show):
            return drive(config, show)
    except (LeaseError, StorageError) as error:
        raise RunError(str(error)) from error
    except SystemExit as end:  # how Ray Train ends on Ctrl-C, too
        raise KeyboardInterrupt(*end.args) from end


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the body as Ctrl-C does, so that the run's log says so.

    Ray's own handler, which `ray.init` installs, takes Ray down before anybody can say anything.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("SIGTERM"))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def drive(config: RunConfig, show: Callable[[str], None]) -> dict[str, Any]:
    """Carry a run to its end; for who holds its lease. Arguments, returns and errors as of `run`.

    Raises:
        StorageError: Its folder can't be used.
    """
    with mirrored(config.url, apart=APART) as mirror:
        mirror.fetch(CONFIG, DATA, MATRIX, HTML, LOG, STAGES)
        return _run(config, mirror, show)


def _run(config: RunConfig, mirror: Mirror, show: Callable[[str], None]) -> dict[str, Any]:
    folder = mirror.folder
    try:
        require_same(config, folder)
        check_model(config)
        show(f"{config.url}: reading {len(config.data.tasks)} tasks from {config.data.root}")
        require_uploaded(config)
        ensure_data(config.data)
        tasks = read_stream(config)
        targets = stream_targets(tasks, config.data, config.evaluation)
        if (folder / CONFIG).is_file() and not (folder / DATA).is_file():
            show(f"{config.url}: has no {DATA}; the run goes on with the data as it is now")
        claim_folder(config, folder)
        claim_data(folder, fingerprints(tasks, targets, config.data, config.evaluation))
    except (RunError, DataError) as error:
        refused(folder, error)
        raise
    mirror.flush()  # what the run is, before any of its work
    try:
        with Display(config, folder, remaining_of(config, tasks, folder)) as display:
            display.line("starting Ray")
            with session(config), _ending_on_sigterm():
                _train(config, display)
            mirror.fetch()
            write_report(folder, tasks, targets, f"{config.url}/{STORE}")
    except (KeyboardInterrupt, SystemExit):
        with suppress(StorageError):
            mirror.flush()  # what the log says of it
        raise
    return read_matrix(folder)


def read_finished(config: RunConfig) -> dict[str, Any] | None:
    """As `finished`, wherever the run is kept.

    Raises:
        RunError: Another configuration has this name.
        StorageError: Its folder can't be read.
    """
    with mirrored(config.url, apart=APART) as mirror:
        mirror.fetch(CONFIG, MATRIX, HTML)
        return finished(config, mirror.folder)


def finished(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The results of a run that has come to its end.

    Raises:
        RunError: Another configuration has this name.
        RunFileError: A file of the folder is damaged.
    """
    require_same(config, folder)
    if not (folder / MATRIX).is_file():
        return None
    found = read_matrix(folder)
    complete = len(found["located"]) == len(config.data.tasks) and (folder / HTML).is_file()
    return found if complete else None


def require_lasting(runs: str) -> None:
    """Refuse what is no place for runs, or lies within the copy of a working directory that Ray
    makes for a job alone.

    Raises:
        RunError: Says what would be right.
    """
    try:
        require_reachable(runs)
    except StorageError as error:
        raise RunError(f"runs: {error}") from error
    if not is_remote(runs) and WORKING_COPIES in Path(runs).absolute().parts:
        raise RunError(
            f"runs is {runs!r}, in the copy of the working directory that this job alone has and "
            "that Ray removes; give --runs an absolute path that stays, or s3://bucket/prefix"
        )


def require_uploaded(config: RunConfig) -> None:
    """Refuse data that a job looks for in its copy of the working directory, and that isn't there.

    Raises:
        RunError: Says what would be right.
    """
    files = config.evaluation.answer_files
    named = {f"evaluation.answer_files.{task}": file for task, file in files.items()}
    if not config.data.generate:
        named["data.root"] = config.data.root
    for key, name in named.items():
        path = Path(name).absolute()
        if not is_remote(name) and WORKING_COPIES in path.parts and not path.exists():
            raise RunError(
                f"{key} is {name!r}, and isn't in the copy of the working directory that this job "
                "has: what .gitignore names isn't uploaded; give an absolute path that every "
                f"machine has{', or s3://bucket/prefix' if key == 'data.root' else ''}"
            )


def require_same(config: RunConfig, folder: Path) -> None:
    """Refuse to go on with a run of this name that was configured otherwise."""
    file = folder / CONFIG
    if not file.is_file():
        return
    if changed := differences(read_config(folder), config.as_dict()):
        listed = "\n  ".join(changed)
        raise RunError(
            f"{file}: the run {config.name!r} was configured otherwise; set these back, or give "
            f"this run another name:\n  {listed}"
        )


def claim_folder(config: RunConfig, folder: Path) -> None:
    """Make the run's folder, and keep its configuration there."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CONFIG
    if not file.is_file():
        with whole(file) as beside:
            beside.write_text(yaml.safe_dump(config.as_dict(), sort_keys=False), encoding="utf-8")


def check_model(config: RunConfig) -> None:
    """Refuse a base that isn't there, or a locator's layer that it doesn't have.

    Raises:
        RunError: Says which.
    """
    try:
        found = require_base(config.model.path, revision=config.model.revision)
    except (MissingModelError, UnsupportedModelError) as error:
        raise RunError(f"model.name: {error}") from error
    layers = found.get_text_config().num_hidden_layers
    if not -1 <= config.locator.layer <= layers:
        raise RunError(
            f"locator.layer is {config.locator.layer}; {config.model.name} has layers 0 to "
            f"{layers - 1}, and {layers} or -1 for its output"
        )


def read_stream(config: RunConfig) -> tuple[Task, ...]:
    """The tasks of a run, held to what its base and its method need of them.

    Workers read them again, and needn't look.

    Raises:
        DataError: As `read_tasks`.
    """
    tokens = reserved_tokens(load_processor(config.model.path, revision=config.model.revision))
    return read_tasks(config.data, config.seed, tokens=tokens, least=config.least_samples)


def _train(config: RunConfig, display: Display) -> None:
    """Let Ray Train carry the worker program, also over lost workers.

    Raises:
        RunError: The run failed for good, or this machine is too small for its workers.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig
    from ray.train import RunConfig as TrainRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cmoe.training.causes import Reporter, causes

    cluster = config.cluster
    gpu = ray.cluster_resources().get("GPU", 0) > 0 if cluster.gpu is None else cluster.gpu
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if gpu else {})
    least = cluster.min_workers or cluster.workers
    if named_cluster(cluster.address) is None:
        _require_room(least, resources)
    _limit_waiting(cluster.timeout_s)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    storage, path = _ray_storage(config.url)
    lost: TrainingFailedError | None = None
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": rooted(config), "board": board},
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
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=cluster.timeout_s),
    )
    try:
        with following(Follower(board, display, least, resources)):
            trainer.fit()
    except TrainingFailedError as error:
        lost = error
    finally:
        cause = ray.get(board.cause.remote())
    if cause is not None:
        raise RunError(cause)
    if lost is not None:
        last = "; ".join(
            text if rank is None else f"worker {rank} {text}" for rank, text in causes(lost)
        )
        raise RunError(
            f"the workers failed more than {cluster.max_failures} times (cluster.max_failures); "
            f"the same command goes on from the last checkpoint. The last time: {last}"
        )


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
    """
    import ray

    if ray.is_initialized():
        yield
        return
    _connect(config, dashboard)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(config: RunConfig, dashboard: bool) -> None:
    # Before Ray is there: its processes inherit them.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    needed = config.cluster.workers * config.cluster.cpus_per_worker
    connect(
        config.cluster.address,
        num_cpus=max(needed, os.cpu_count() or 1),
        include_dashboard=dashboard,
    )
