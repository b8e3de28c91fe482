"""What a stream's control costs by the number of workers: the section `control`.

The workers are threads, and base, method and engine compute next to nothing. The rest is a run's
own: stream, trainer, predictor, store, files, collectives, and Ray's actors.
"""

from __future__ import annotations

import json
import math
import pickle
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cmoe.common.group import Group
from cmoe.common.remote.mirror import mirrored
from cmoe.config.settings import ClusterConfig
from cmoe.config.tree import RunConfig
from cmoe.data.settings import DataConfig, OwnTask
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.experiments.benchmarks.counted import (
    AGAIN,
    CHECKPOINT,
    COMMITTING,
    EVALUATING,
    FEATURES,
    OPENING,
    RECALLING,
    RESUMING,
    STEP,
    Actors,
    CountedLink,
    CountedStream,
    LostError,
)
from cmoe.experiments.benchmarks.threads import Asked, Counts, Here, Ledger, run_workers
from cmoe.folder import APART
from cmoe.run.board import Board
from cmoe.run.heartbeat import Heartbeat
from cmoe.training.settings import TrainingConfig

Row = dict[str, Any]
Found = dict[str, list[Counts]]
"""By operation what every worker did, in the order of ranks."""

TASKS = ("first", "second")
TRAINED, TESTED = 512, 128  # samples of a task
STEPS, KEPT_EVERY = 20, 10  # of a task
BATCHES = 64  # of a step at least: as many workers can share it
LOST_BEHIND = 3  # checkpoints: the second task's first
TIMES = {STEP: 40, CHECKPOINT: 4, FEATURES: 2, COMMITTING: 2, EVALUATING: 3}
"""How often a stream does what it does more than once."""
LOOK = "a look of the driver"
TOTALS = {"kB of all": 1, "actor calls": 0, "files": 0}
"""What may grow; and whether one worker has to be left out, to which nothing comes."""
MORE = 1.1
"""A total that grows with a larger power of the number of workers is told."""


def control(workers: Sequence[int]) -> list[Row]:
    """A stream of two tasks that is lost once: what one operation costs, by the number of workers.

    `collectives` and `ms` are rank 0's. What is received is told of rank 0, of one other rank, and
    of all; the calls of actors and the files that were opened are those of all ranks.
    """
    from cmoe.run.worker_group import session

    rows: list[Row] = []
    with TemporaryDirectory(prefix="cmoe-bench-") as folder:
        data = write_rows(Path(folder) / "data")
        with session(RunConfig("bench", cluster=ClusterConfig(workers=1))):
            batches = max(BATCHES, *workers)
            first = configured(Path(folder), data, 2, batches)
            measured(replace(first, name="first"), ray_actors(2))  # it imports what all use
            for count in workers:
                actors = ray_actors(count)
                found = measured(configured(Path(folder), data, count, batches), actors)
                rows += [row(operation, count, each) for operation, each in found.items()]
                rows.append(row(LOOK, count, [look(count, actors)]))
    return with_growth(rows)


def write_rows(folder: Path) -> DataConfig:
    """Rows of two tasks without images."""
    folder.mkdir()
    for task in TASKS:
        for split, count in (("train", TRAINED), ("test", TESTED)):
            rows = [
                {"question_id": f"{task}/{n}", "text": f"What is {n} of {task}?", "answer": "yes"}
                for n in range(count)
            ]
            (folder / f"{task}-{split}.json").write_text(json.dumps(rows))
    own = {t: OwnTask(f"{t}-train.json", f"{t}-test.json", "exact") for t in TASKS}
    return DataConfig(root=str(folder), own=own)


def configured(folder: Path, data: DataConfig, workers: int, batches: int = BATCHES) -> RunConfig:
    """A run of the same steps and batches for any number of workers."""
    return RunConfig(
        f"of-{workers}",
        runs=str(folder / "runs"),
        data=data,
        training=TrainingConfig(
            steps=STEPS, global_batch=batches, micro_batch=1, checkpoint_every=KEPT_EVERY
        ),
        evaluation=EvaluationConfig(batch_size=2, flush_every=2),
        cluster=ClusterConfig(workers=workers),
    )


def ray_actors(workers: int) -> Actors:
    """The board and Ray Train's own actor for collectives, as actors of Ray."""
    import ray
    from ray.train.v2._internal.execution.checkpoint.sync_actor import SynchronizationActor

    board: Any = ray.remote(Board).options(num_cpus=0).remote()
    actor: Any = SynchronizationActor  # is one already
    meeting: Any = Asked(actor.options(num_cpus=0).remote())

    def meet(rank: int) -> None:
        ray.get(
            meeting.broadcast_from_rank_zero.remote(
                world_rank=rank, world_size=workers, data=None, caller_method_name="control"
            )
        )

    return Actors(Asked(board), meet, ray.get)


def local_actors(workers: int) -> Actors:
    """The same within this process, without Ray."""
    barrier = threading.Barrier(workers)
    meeting: Any = Asked(barrier)
    return Actors(Asked(Here(Board())), lambda rank: meeting.wait(), lambda found: found)


def measured(config: RunConfig, actors: Actors) -> Found:
    """What every worker did: it learns a task, is lost in the second one, and goes on."""
    config.folder.mkdir(parents=True)
    ledgers = [Ledger() for _ in range(config.cluster.workers)]
    together = threading.Barrier(len(ledgers))

    def worker(start: str, lost_behind: int, group: Group, ledger: Ledger) -> None:
        ledger.enter(start)
        link = CountedLink(config, group, ledger, actors, together, lost_behind)
        with mirrored(config.url, apart=APART) as mirror:
            CountedStream(config, group, link, mirror).run()

    with suppress(LostError):
        run_workers(ledgers, partial(worker, OPENING, LOST_BEHIND))
    run_workers(ledgers, partial(worker, AGAIN, 0))
    operations = (OPENING, STEP, CHECKPOINT, FEATURES, COMMITTING, EVALUATING, AGAIN, RECALLING)
    return {name: [each.counts[name] for each in ledgers] for name in (*operations, RESUMING)}


def look(workers: int, actors: Actors) -> Counts:
    """What the driver's look at the board brings, twice a second, once all workers have beaten."""
    for rank in range(workers):
        Heartbeat(actors.board, rank).beat()
    start = time.perf_counter()
    found = actors.get(actors.board.quiet.remote())
    passed = time.perf_counter() - start
    return Counts(received=len(pickle.dumps(found)), actors=1, seconds=passed)


def row(operation: str, workers: int, each: Sequence[Counts]) -> Row:
    """One operation's figures."""
    times = TIMES.get(operation, 1)
    first, *others = each

    def total(name: str) -> float:
        every: list[float] = [getattr(counts, name) for counts in each]
        return sum(every) / times

    return {
        "operation": operation,
        "workers": workers,
        "collectives": first.collectives / times,
        "kB of rank 0": first.received / times / 1e3,
        "kB of another": max((o.received for o in others), default=0) / times / 1e3,
        "kB of all": total("received") / 1e3,
        "actor calls": total("actors"),
        "files": total("files"),
        "ms": 1e3 * first.seconds / times,
    }


def with_growth(rows: Sequence[Row]) -> list[Row]:
    """The rows by operation, with what grew faster than the number of workers did.

    `grows` has the power of that number by which a total grew, since the first row with several.
    """
    found: list[Row] = []
    for operation in dict.fromkeys(row["operation"] for row in rows):
        mine = [row for row in rows if row["operation"] == operation]
        several = [row for row in mine if row["workers"] > 1]
        found += [row | {"grows": _faster(several[0], row) if several else ""} for row in mine]
    return found


def _faster(before: Row, now: Row) -> str:
    if now["workers"] <= before["workers"]:
        return ""
    powers = {
        name: math.log(now[name] / before[name])
        / math.log((now["workers"] - itself) / (before["workers"] - itself))
        for name, itself in TOTALS.items()
        if before[name] and now[name]
    }
    return ", ".join(f"{name} ^{power:.1f}" for name, power in powers.items() if power > MORE)
