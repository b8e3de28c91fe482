"""What finished runs no longer need, and its removal: checkpoints, what kills have left, copies.

A run keeps all that says what it is and what came of it: its store, its report, its figures, its
configuration and the answers that they are made of. A run that a job drives is left alone: whoever
removes holds the run's lease meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from cmoe.common.remote.mirror import Abandoned, abandoned_copies, mirrored
from cmoe.common.run_files import RunFileError
from cmoe.common.storage import StorageError, explained, filesystem
from cmoe.common.storage_errors import LISTED, WRITTEN
from cmoe.evaluation.predictions import unneeded_answers
from cmoe.folder import CONFIG, LEASE, MATRIX, PREDICTIONS, STORE, TRAIN, RunFolder
from cmoe.operations.runs import is_run, runs_below
from cmoe.run.lease import LeaseError, alive, held, holder_of

State = Literal["finished", "stopped", "running", "damaged"]
_TEMPORARY = re.compile(r".*\.[0-9a-f]{32}\.tmp")  # as `common.files.whole` names it
_APART = (STORE, LEASE)
"""What `cmoe store verify` looks after, and what says who works on the run."""


@dataclass(frozen=True)
class Removable:
    """A file or folder that can go.

    Attributes:
        name: In the run's folder.
        why: What it is.
        files: How many.
        size: Bytes, of all of them.
    """

    name: str
    why: str
    files: int
    size: int


@dataclass(frozen=True)
class Run:
    """A run, and what of it can go.

    Attributes:
        url: Of its folder.
        state: How far it is; `running` is what a job drives, `damaged` what can't be told.
        said: Who drives it, or what is damaged.
        removable: What can go.
    """

    url: str
    state: State
    said: str = ""
    removable: Sequence[Removable] = ()


def look(url: str, *, stopped: bool) -> tuple[list[Run], list[Abandoned]]:
    """What can go of a folder of runs, or of one run; nothing is changed.

    Args:
        url: The folder, or `s3://bucket/prefix`.
        stopped: Whether runs that were stopped or failed are to be pruned, too: they lose the
            training that was under way, and keep the tasks that they have learned.

    Returns:
        The runs, and local copies of runs on S3 that killed jobs have left on this machine.

    Raises:
        StorageError: There is no such folder, or it can't be read.
        LeaseError: The file of a lease is damaged.
    """
    url = url.rstrip("/")
    runs = [url] if is_run(url) else [*runs_below(url, 1)]
    copies = abandoned_copies(url)
    if not runs and not copies:
        raise StorageError(f"{url}: no run is there; give a folder of runs, or one run's")
    holders = [holder_of(run) for run in runs]
    driven = alive(runs, holders)
    found = [
        Run(run, "running", str(holder)) if driven_now else _looked(run, stopped)
        for run, holder, driven_now in zip(runs, holders, driven, strict=True)
    ]
    return found, copies


def prune(run: Run, show: Callable[[str], object] = print) -> None:
    """Remove what can go of a run, for good, while no job may drive it.

    Args:
        run: As `look` has found it.
        show: Told what is waited for.

    Raises:
        StorageError: A job drives it, it is another one by now, or a file can't be removed.
    """
    fs, root = filesystem(run.url)
    try:
        with held(run.url, show):
            if _looked(run.url, stopped=True).state != run.state:
                raise StorageError(f"{run.url}: isn't {run.state} any more; look again")
            for each in run.removable:
                where = f"{run.url}/{each.name}"
                with explained(where, WRITTEN):
                    fs.rm(f"{root}/{each.name}", recursive=True)
    except LeaseError as error:
        raise StorageError(str(error)) from error


def _looked(url: str, stopped: bool) -> Run:
    """A run that nobody drives."""
    with mirrored(url, apart=[*_APART, TRAIN]) as mirror:
        mirror.fetch(CONFIG, MATRIX)
        folder = RunFolder(mirror.folder, url)
        state: State = "stopped"
        answers: set[str] = set()
        try:
            if folder.finished():
                state = "finished"
                mirror.fetch(PREDICTIONS)
                answers = unneeded_answers(folder.predictions)
        except RunFileError as error:
            return Run(url, "damaged", str(error))
    if state == "stopped" and not stopped:
        return Run(url, state)
    return Run(url, state, "", [*_removable(url, {f"{PREDICTIONS}/{name}" for name in answers})])


def _removable(url: str, answers: set[str]) -> Iterator[Removable]:
    fs, root = filesystem(url)
    with explained(url, LISTED):
        there: dict[str, Any] = fs.find(root, detail=True)
    groups: dict[tuple[str, str], list[int]] = {}
    for path, info in there.items():
        name = path.removeprefix(f"{root}/")
        parts = PurePosixPath(name).parts
        half = [i for i, part in enumerate(parts, 1) if _TEMPORARY.fullmatch(part)]
        if parts[0] == TRAIN:
            key = TRAIN, "checkpoints"
        elif parts[0] not in _APART and half:
            key = "/".join(parts[: half[0]]), "half written"
        elif name in answers:
            key = name, "answers that no stage needs"
        else:
            continue
        groups.setdefault(key, []).append(int(info["size"]))
    for (name, why), sizes in groups.items():
        yield Removable(name, why, len(sizes), sum(sizes))
