"""Where runs are, from their files alone: on a disk or on S3, while they go on and afterwards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from cmoe.common.errors import DataError, KnownError
from cmoe.common.remote.mirror import mirrored
from cmoe.common.run_files import read_object
from cmoe.common.storage import explained, filesystem
from cmoe.common.storage_errors import LISTED
from cmoe.folder import APART, CONFIG, LOG, MATRIX, REPORT, STATUS, SWEEP, RunFolder
from cmoe.operations.runs import runs_below
from cmoe.run.holder import Holder
from cmoe.run.lease import alive, holder_of, seen

LINES = 5  # of the log that are shown
TAIL = 16_384  # bytes of the log that are read for them
STAMPED = re.compile(r"[\d-]{10} [\d:]{8} (.*)")
AT_A_TIME = 8  # runs that are read
MOST = 1000  # runs of a folder

State = Literal["running", "finished", "interrupted", "failed", "lost", "stopped", "unreadable"]
"""`lost`: the driver has gone without a word; `stopped`: nobody drives it, and why isn't known."""
WELL: tuple[State, ...] = ("running", "finished")


@dataclass(frozen=True)
class RunStatus:
    """Where a run is.

    Attributes:
        url: Its folder.
        state: How it is.
        why: What it said of its end, or why it can't be read.
        tasks: Of its stream.
        learned: How many of them are learned and evaluated; of a sweep, swept.
        place: Where it was last: `index`, `task`, `phase`, `step`, `steps`; empty if not known.
        figures: `loss`, `tokens_per_s`, `step_s` and so on, of the last step that was logged.
        remaining_s: Seconds that are left of the phase and of the run, as estimated.
        quiet_s: Seconds without any worker's progress.
        written: When the driver wrote the three before, in seconds since the epoch.
        jobs: How often a driver began; None for a run of a version that didn't count.
        restarted: How often workers were started again.
        restarts: The latest of them, with `time` and `why`.
        workers: Last beats by rank.
        holder: Who drives it or did last.
        scores: Of the tasks learned so far, in percent.
        measures: Last, BWT and the others.
        lines: The end of `run.log`.
        sizes: Bytes by part of its folder.
    """

    url: str
    state: State
    why: str | None = None
    tasks: Sequence[str] = ()
    learned: int = 0
    place: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    remaining_s: Mapping[str, float | None] = field(default_factory=dict)
    quiet_s: float | None = None
    written: float | None = None
    jobs: int | None = None
    restarted: int | None = None
    restarts: Sequence[Mapping[str, Any]] = ()
    workers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    holder: Holder | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    measures: Mapping[str, float | None] = field(default_factory=dict)
    lines: Sequence[str] = ()
    sizes: Mapping[str, int] | None = None

    @property
    def well(self) -> bool:
        """Whether it goes on, or has come to its end."""
        return self.state in WELL


def status_of(url: str) -> RunStatus:
    """Where a run is.

    Raises:
        KnownError: There is no run, its storage can't be read, or a file of it is damaged.
    """
    (found,) = statuses([url])
    if found.state == "unreadable":
        raise DataError(found.why)
    return replace(found, sizes=_sizes(url))


def statuses(urls: Sequence[str]) -> list[RunStatus]:
    """Where several runs are; one with a damaged file says so.

    Raises:
        StorageError: A storage doesn't answer.
        LeaseError: A lease's file is damaged.
    """
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        holders = [*pool.map(holder_of, urls)]
        return [*pool.map(_read, urls, holders, alive(urls, holders))]


def runs_in(url: str) -> list[str]:
    """The runs of a folder, and those of the folders in it: a comparison's.

    Raises:
        DataError: There is none, or there are too many.
        StorageError: The folder can't be read.
    """
    found = [*islice(runs_below(url, 2), MOST + 1)]
    if not found and seen(holder := holder_of(url)):
        raise DataError(f"{url}: a job prepares it: {holder}; there is no more to tell yet")
    if not found:
        raise DataError(f"{url}: no run is here, as no {CONFIG} is; give a run's folder, or theirs")
    if len(found) > MOST:
        raise DataError(f"{url}: has more than {MOST} runs; give a folder with fewer, or one run")
    return found


# What the files say


def _read(url: str, holder: Holder | None, alive: bool) -> RunStatus:
    try:
        with mirrored(url, apart=APART) as mirror:
            mirror.fetch(CONFIG, MATRIX, REPORT, STATUS, LOG, SWEEP)
            found = _of_folder(RunFolder(mirror.folder, url), holder, alive)
    except KnownError as error:
        return RunStatus(url, "unreadable", why=str(error), holder=holder)
    return found


def _of_folder(folder: RunFolder, holder: Holder | None, alive: bool) -> RunStatus:
    tasks = folder.read_config()["data"]["tasks"]
    said, lines = folder.read_status(), _log(folder)
    rows: list[list[float]] = []
    measures: dict[str, float | None] = {}
    whole = folder.finished() is not None and folder.report.is_file()
    if folder.matrix.is_file():
        matrix = folder.read_matrix()
        rows, measures = matrix["located"], matrix.get("metrics") or {}
    learned = len(rows)
    if not rows and (sweep := folder.path / SWEEP).is_file():  # its winners may be learned later
        learned = len(read_object(sweep, "restore it from a copy", "tasks")["tasks"])
        whole = learned == len(tasks)
    state, why = _state(said, lines, holder, alive=alive, whole=whole)
    place = said.get("place", {})
    if (index := place.get("index", -1)) >= 0:
        place = {**place, "task": tasks[index]}
    return RunStatus(
        url=folder.url,
        state=state,
        why=why,
        tasks=tasks,
        learned=learned,
        place=place,
        figures={n: v for n, v in said.get("figures", {}).items() if v is not None},
        remaining_s=said.get("remaining_s", {}),
        quiet_s=said.get("quiet_s"),
        written=said.get("written"),
        jobs=said.get("jobs"),
        restarted=said.get("restarted"),
        restarts=said.get("restarts", ()),
        workers=said.get("workers", {}),
        holder=holder,
        scores=dict(zip(tasks, rows[-1][: len(rows)], strict=False)) if rows else {},
        measures=measures,
        lines=lines[-LINES:],
    )


def _state(
    said: Mapping[str, Any],
    lines: Sequence[str],
    holder: Holder | None,
    *,
    alive: bool,
    whole: bool,
) -> tuple[State, str | None]:
    """How a run is, and what it said of its end."""
    if alive:
        return "running", None
    if whole:
        return "finished", None
    if said.get("state") in ("interrupted", "failed"):
        return said["state"], said["why"]
    if holder is not None and not holder.released:
        return "lost", f"its driver has gone: {holder}"
    if not said:  # of a version that wrote no status.json
        texts = [found[1] for line in lines if (found := STAMPED.fullmatch(line))]
        own = [text for text in texts if not text.startswith("refused: ")]
        for state in ("interrupted", "failed"):
            if own and own[-1].startswith(state):
                return state, own[-1]
    return "stopped", None


def _log(folder: RunFolder) -> list[str]:
    """The last lines of a run's log, more than are shown."""
    if not folder.log.is_file():
        return []
    with open(folder.log, "rb") as log:
        log.seek(max(0, folder.log.stat().st_size - TAIL))
        return log.read().decode("utf-8", "replace").splitlines()


def _sizes(url: str) -> dict[str, int]:
    """Bytes of a run's folder by its largest parts; `others` is what is left."""
    fs, root = filesystem(url)
    sizes: Counter[str] = Counter()
    with explained(url, LISTED):
        for path, info in fs.find(root, detail=True).items():
            top, inner, _ = path.removeprefix(root).lstrip("/").partition("/")
            sizes[top if inner else "others"] += info["size"] or 0
    return dict(sizes.most_common())
