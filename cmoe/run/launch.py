"""Start a run on Ray Train, or resume it; a finished run is left alone."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cmoe.common.errors import DataError
from cmoe.common.errors import RunError as RunError
from cmoe.common.files import WORKING_COPIES
from cmoe.common.log_lines import say
from cmoe.common.remote.mirror import mirrored
from cmoe.common.run_files import write_json
from cmoe.common.storage import StorageError, is_remote, require_reachable
from cmoe.config.tree import RunConfig
from cmoe.data.coin import read_tasks
from cmoe.data.samples import Task
from cmoe.evaluation.data_identity import claim_data, fingerprints
from cmoe.evaluation.report_data import report_data
from cmoe.evaluation.targets import Targets, stream_targets
from cmoe.folder import APART, BEGUN, CONFIG, DATA, MATRIX, REPORT, RunFolder
from cmoe.mini.tasks import ensure_data
from cmoe.modeling.base import UnsupportedModelError, find_ffns
from cmoe.modeling.kernels.choice import require_swiglu, require_triton
from cmoe.modeling.pretrained import MissingModelError, load_shape, require_base, require_loadable
from cmoe.run.cluster import may_have_gpu
from cmoe.run.display import Display, refused
from cmoe.run.lease import LeaseError, held
from cmoe.run.remaining_time import remaining_of
from cmoe.run.trackers import require_trackers
from cmoe.run.worker_group import session, train
from cmoe.tasks.base_rule import base_rule


def run(config: RunConfig, show: Callable[[str], None] = say) -> dict[str, Any]:
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
    require_trackers(config)
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
        mirror.fetch(*BEGUN)
        folder = RunFolder(mirror.folder, config.url)
        tasks, targets = _claimed(config, folder, show)
        mirror.flush()  # what the run is, before any of its work
        try:
            with Display(config, folder, remaining_of(config, tasks, folder)) as display:
                if folder.finished() is None:
                    display.line("starting Ray")
                    with session(config), _ending_on_sigterm():
                        train(config, display)
                mirror.fetch()
                write_json(folder.report, report_data(folder, tasks, targets))
        except (KeyboardInterrupt, SystemExit):
            with suppress(StorageError):
                mirror.flush()  # what the log says of it
            raise
        return folder.read_matrix()


def _claimed(
    config: RunConfig, folder: RunFolder, show: Callable[[str], None]
) -> tuple[Sequence[Task], Targets]:
    """The stream of a run, whose folder is its own from now on.

    Raises:
        RunError: Another configuration has this name, or the base can't be used.
        DataError: The data is missing, wrong, or not what the run began with.
    """
    try:
        folder.require_same(config.as_dict())
        check_model(config)
        show(f"{config.url}: reading {len(config.data.tasks)} tasks from {config.data.root}")
        require_uploaded(config)
        ensure_data(config.data)
        tasks = read_stream(config, show)
        targets = stream_targets(tasks, config.data, config.evaluation)
        if folder.config.is_file() and not folder.data.is_file():
            show(f"{config.url}: has no {DATA}; the run goes on with the data as it is now")
        folder.claim(config.as_dict())
        claim_data(folder.path, fingerprints(tasks, targets, config.data, config.evaluation))
    except (RunError, DataError, StorageError) as error:
        refused(folder, error)
        raise
    return tasks, targets


def read_finished(config: RunConfig) -> dict[str, Any] | None:
    """The results of a run that has nothing left to do, wherever it is kept.

    None for one that isn't finished, or whose report's data is missing; another's configuration is
    refused by who drives it.

    Raises:
        RunFileError: A file of the folder is damaged.
        StorageError: Its folder can't be read.
    """
    with mirrored(config.url, apart=APART) as mirror:
        mirror.fetch(CONFIG, MATRIX, REPORT)
        folder = RunFolder(mirror.folder, config.url)
        try:
            folder.require_same(config.as_dict())
        except RunError:
            return None
        return folder.finished() if folder.report.is_file() else None


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
    require_kept(runs)


def require_kept(runs: str) -> None:
    """As `require_lasting`, of the path alone.

    Raises:
        RunError: Says what would be right.
    """
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


def check_model(config: RunConfig) -> None:
    """Refuse a base that isn't there or can't be loaded or computed so, or lacks a locator's layer.

    Raises:
        RunError: Says which.
    """
    try:
        found = require_base(config.model.path, revision=config.model.revision)
    except (MissingModelError, UnsupportedModelError) as error:
        raise RunError(f"model.name: {error}") from error
    gpu = may_have_gpu(config.cluster.gpu, config.cluster.address)
    try:
        require_loadable(config.model, gpu=gpu)
        if config.model.kernels == "triton":
            require_triton(gpu=gpu)
            shape = load_shape(config.model.path, revision=config.model.revision)
            for layer, site in enumerate(find_ffns(shape)):
                require_swiglu(layer, site.module)
    except UnsupportedModelError as error:
        raise RunError(str(error)) from error
    layers = found.get_text_config().num_hidden_layers
    if not -1 <= config.locator.layer <= layers:
        raise RunError(
            f"locator.layer is {config.locator.layer}; {config.model.name} has layers 0 to "
            f"{layers - 1}, and {layers} or -1 for its output"
        )


def read_stream(config: RunConfig, show: Callable[[str], None] | None = None) -> tuple[Task, ...]:
    """The tasks of a run, held to what its base and its method need of them.

    Workers read them again, and needn't look.

    Args:
        config: The run.
        show: Told which formats the files of own tasks have.

    Raises:
        DataError: As `read_tasks`.
    """
    base, least = base_rule(config.model), config.least_samples
    return read_tasks(config.data, config.seed, base=base, least=least, say=show)
