"""What every worker of the group runs under Ray Train, and its link to Ray and to the driver."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from cmoe.common.files import temporary_folder
from cmoe.common.group import Group
from cmoe.common.storage import StorageError, explained
from cmoe.common.storage_errors import WRITTEN
from cmoe.folder import TRAIN
from cmoe.methods.method import seed_of
from cmoe.run.heartbeat import Heartbeat
from cmoe.run.monitoring.worker_logs import mark_logs
from cmoe.run.worker_failures import described, is_own, limit_collectives

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5


def work(settings: Mapping[str, Any]) -> None:
    """What every worker of the group runs.

    Ray Train starts a failed group again, whatever the failure was. One that would come again is
    told to the board, and the group that is started for it ends at once.
    """
    import ray
    import ray.train
    import ray.train.torch

    began = time.monotonic()
    config, board = settings["config"], settings["board"]
    if ray.get(board.cause.remote()) is not None:
        return
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    heartbeat = Heartbeat(board, rank)
    mark_logs(config, heartbeat, in_json=settings["in_json"])
    heartbeat.start()
    import torch

    from cmoe.evaluation.costs import peak_memory
    from cmoe.run.stream import run_stream

    torch.set_num_threads(config.cluster.cpus_per_worker)
    limit_collectives(config.cluster.timeout_s)
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _own_temporary_folder(config.url, rank)
    memory = partial(peak_memory, device)
    link = RayLink(board, f"{config.url}/{TRAIN}", heartbeat, memory, first=rank == 0)
    link.startup["imports"] = began
    if rank == 0:
        _remove_cut_off()
        if count := ray.get(board.start.remote()):
            link.emit({"phase": "restart", "count": count, "workers": workers})
    try:
        run_stream(config, Group(rank, workers, device), link)
    except Exception as error:
        logger.info("failed", exc_info=error)
        if is_own(error):
            error.add_note(f"on {heartbeat.worker}")
            ray.get(board.fail.remote(described(error, config)))
        raise
    finally:
        heartbeat.stop()


def _lasted(began: Mapping[str, float]) -> dict[str, float]:
    """Seconds of what began one after the other, the last until now."""
    ends = [*began.values(), time.monotonic()][1:]
    return {name: end - start for (name, start), end in zip(began.items(), ends, strict=True)}


def _own_temporary_folder(url: str, rank: int) -> None:
    """Keep temporary files where a rank that starts again finds and removes them.

    Ray ends a group by killing it, so that nobody cleans up behind himself.
    """
    name = f"cmoe-{os.getuid()}-{seed_of(url):x}-{rank}"
    place = Path(tempfile.gettempdir()) / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    tempfile.tempdir = str(place)


def _remove_cut_off() -> None:
    """Remove what is left of checkpoints whose upload was cut off; Ray has never heard of them."""
    from pyarrow.fs import FileSelector, FileType
    from ray.train import get_checkpoint, get_context

    storage, current = get_context().get_storage(), get_checkpoint()
    fs, root = storage.storage_filesystem, storage.experiment_fs_path
    for info in fs.get_file_info(FileSelector(root, allow_not_found=True)):
        known = current is not None and Path(current.path).name == info.base_name
        # Beside them lies Ray's own list of them, `checkpoint_manager_snapshot.json`.
        if (
            info.base_name.startswith("checkpoint_")
            and info.type == FileType.Directory
            and not known
        ):
            fs.delete_dir(info.path)


class Checkpoints:
    """The half of a link that reads: the latest checkpoint, as Ray knows it."""

    def _latest(self) -> Any:
        """Ray's own checkpoint, or None."""
        raise NotImplementedError

    @contextmanager
    def saved(self, needed: Callable[[str], bool] | None = None) -> Iterator[Path | None]:
        checkpoint = self._latest()
        if checkpoint is None:
            yield None
            return
        if checkpoint.filesystem.type_name == "local":
            yield Path(checkpoint.path)
            return
        # A copy of one's own: Ray's, which ranks of a node share, may be written anew while it is
        # read.
        with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
            _fetch(checkpoint, Path(folder), needed)
            yield Path(folder)

    def read_saved(self, name: str) -> str | None:
        checkpoint = self._latest()
        if checkpoint is None:
            return None
        try:
            with checkpoint.filesystem.open_input_stream(f"{checkpoint.path}/{name}") as file:
                text: str = file.read().decode()
                return text
        except FileNotFoundError:
            return None


def _fetch(checkpoint: Any, folder: Path, needed: Callable[[str], bool] | None) -> None:
    """Copy the files of one of Ray's checkpoints that are needed."""
    from pyarrow.fs import FileSelector, FileType, LocalFileSystem, copy_files

    found = checkpoint.filesystem.get_file_info(FileSelector(checkpoint.path, recursive=True))
    for info in found:
        if info.type == FileType.File and (needed is None or needed(info.base_name)):
            file = folder / PurePosixPath(info.path).relative_to(checkpoint.path)
            file.parent.mkdir(parents=True, exist_ok=True)
            copy_files(info.path, str(file), checkpoint.filesystem, LocalFileSystem())


class RayLink(Checkpoints):
    """The worker program's link to Ray Train and to the driver's display.

    Args:
        board: The board's actor.
        url: Where Ray keeps checkpoints.
        heartbeat: Tells where this worker is.
        memory: Gives the bytes that it has needed at most; told with every loss.
        first: Whether this worker's events are shown.

    Attributes:
        startup: When each part of the start began; told with the first step, and forgotten.
    """

    def __init__(
        self,
        board: Any,
        url: str,
        heartbeat: Heartbeat,
        memory: Callable[[], int],
        *,
        first: bool,
    ) -> None:
        self.board, self._url, self._heartbeat, self._first = board, url, heartbeat, first
        self._memory = memory
        self.startup: dict[str, float] = {}
        self._told: Any = None
        self._under_way: Path | None = None
        heartbeat.saving = self._saving

    def _saving(self) -> bool:
        """Whether a checkpoint is under way: its folder goes when it is kept."""
        return self._under_way is not None and self._under_way.exists()

    def emit(self, event: Mapping[str, Any]) -> None:
        self._heartbeat.reached(event)
        if self._first:
            more: dict[str, Any] = {"memory": self._memory()} if "loss" in event else {}
            if event.get("step") and self.startup:
                more["startup"] = _lasted(self.startup)
                self.startup = {}
            self.board.post.remote({**event, **more})

    def reached(self, place: Mapping[str, Any]) -> None:
        self._heartbeat.reached(place)
        if self.startup:
            self.startup[place["phase"]] = time.monotonic()

    def save(self, folder: Path, *, wait: bool) -> None:
        from ray.train import Checkpoint, CheckpointUploadMode, report

        while self._saving():
            time.sleep(POLL_SECONDS)  # one at a time, or a slow storage would fill this disk
        self._under_way = folder
        report(
            {},
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=getattr(CheckpointUploadMode, "SYNC" if wait else "ASYNC"),
            delete_local_checkpoint_after_upload=True,
            checkpoint_upload_fn=self._upload,
        )

    def _upload(self, checkpoint: Any, name: str) -> Any:
        """Keep a checkpoint as Ray would. It may run behind the training: what would fail again
        ends the run from here, or Ray would start the group again.
        """
        import ray
        from ray.train import get_context

        try:
            with explained(f"{self._url}/{name}", WRITTEN):
                return get_context().get_storage().persist_current_checkpoint(checkpoint, name)
        except StorageError as error:
            if not error.transient:
                ray.get(self.board.fail.remote(str(error)))
            raise

    def leaving(self) -> bool:
        # Not `get_preemption_info`, a broadcast by an actor that every worker calls.
        from ray.train.v2._internal.execution.context import get_train_context

        found = get_train_context().preemption_context.preemption_info
        news = found is not None and found != self._told
        self._told = found
        return news

    def _latest(self) -> Any:
        from ray.train import get_checkpoint

        return get_checkpoint()
