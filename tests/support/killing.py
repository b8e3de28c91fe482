"""Run a stream as the job does, and do harm to its processes: `killing.py MOMENT,MOMENT.. FLAGS`.

The kill is a real SIGKILL, sent by the worker that has come to the moment, to itself or to the
driver; `worker-stopped` is a SIGSTOP for some seconds, `worker-memory` an error of torch's. A kill
in `FILES` comes when half of that file is written. A moment happens once: a file beside the run
marks it, and the run that goes on passes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cmoe.cli.main import execute
from cmoe.cli.stream import coin_stream
from cmoe.config.parse import parse
from cmoe.config.tree import RunConfig
from cmoe.run import heartbeat
from cmoe.run import monitor as following
from cmoe.run import stalls as watch
from cmoe.run import worker_group as ray_train
from cmoe.run.monitoring import lost_ray

JOB = "coin_stream.py"
STOPPED_S = 8
SILENT_S, QUIET_S, WAITING_S, BEAT_S = 2.0, 3.0, 1.0, 0.5  # instead of a minute's
LOOK_S, PATIENCE_S, AWAY_S = 0.5, 1.0, 1.0  # likewise, at the head
FILES = {
    "worker-matrix": "matrix.json",
    "driver-report": "report.json",
    "driver-page": "report.html",
}


def main() -> int:
    moments, arguments = sys.argv[1].split(","), sys.argv[2:]
    config = parse(arguments)
    work = ray_train.work
    driver = os.getpid()

    def work_and_die(settings: Mapping[str, Any]) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from support import killing

        killing.plant(settings["config"], moments, driver)
        work(settings)

    ray_train.work = work_and_die
    following.QUIET_S, following.WAITING_S, watch.SILENT_S = QUIET_S, WAITING_S, SILENT_S
    lost_ray.LOOK_S, lost_ray.PATIENCE_S, lost_ray.AWAY_S = LOOK_S, PATIENCE_S, AWAY_S
    half_written(config, moments, "driver")
    return execute(coin_stream, JOB, arguments)


def once(config: RunConfig, moment: str, moments: list[str]) -> bool:
    """Whether a moment is to happen now."""
    marker = config.folder / f"killed-{moment}"
    if moment not in moments or marker.exists():
        return False
    marker.touch()
    return True


def half_written(config: RunConfig, moments: list[str], process: str) -> None:
    """Kill this process when half of a file is written, before it gets its name."""
    rename = Path.rename

    def within(beside: Path, file: Path) -> Path:
        for moment, name in FILES.items():
            of = moment.startswith(process) and Path(file).name == name
            if of and once(config, moment, moments):
                os.truncate(beside, beside.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        return rename(beside, file)

    Path.rename = within  # type: ignore[method-assign, assignment]


def plant(config: RunConfig, moments: list[str], driver: int) -> None:
    """Make the product's own functions kill a process when they come to a moment."""
    import ray.train
    import torch

    from cmoe.evaluation.predict import Predictor
    from cmoe.store.files import DiskFolder
    from cmoe.store.log import Store
    from cmoe.training.engine import Engine

    rank = ray.train.get_context().get_world_rank()
    heartbeat.BEAT_S = BEAT_S

    def now(moment: str, of: int) -> bool:
        return rank == of and once(config, moment, moments)

    def kill(moment: str, of: int) -> None:
        if now(moment, of):
            os.kill(driver if "driver" in moment else os.getpid(), signal.SIGKILL)

    def stop() -> None:
        """Stop this process, and let another one wake it."""
        subprocess.Popen(["sh", "-c", f"sleep {STOPPED_S}; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)

    def before(owner: Any, name: str, happens: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            happens(self, *args)
            return original(self, *args, **kwargs)

        setattr(owner, name, wrapped)

    steps = [0]

    def stepping(engine: Any, *_: Any) -> None:
        steps[0] += 1
        if steps[0] == 3 and now("worker-memory", 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if steps[0] == 4 and now("worker-stopped", 1):
            stop()
        if steps[0] == 8:  # behind a checkpoint, and before the next
            kill("worker-training", 1)
        if steps[0] == 12:
            kill("driver-training", 0)

    def answering(predictor: Any, stage: int, *_: Any) -> None:
        if stage >= 1:  # a killed driver's workers may have answered stage 1 before they ended
            kill("worker-predicting", 0)

    def evaluating(predictor: Any, stage: int, *_: Any) -> None:
        if stage == 0:
            kill("driver-between", 0)

    def creating(folder: Any, name: str, *_: Any) -> None:
        if name == "002.json":  # its tensors are written, its record is not
            kill("worker-committing", 0)

    before(Engine, "update", stepping)
    before(Predictor, "_write_answers", answering)
    before(Predictor, "evaluate", evaluating)
    before(DiskFolder, "create_file", creating)
    append = Store.append

    def committing(store: Store, primitive: Any) -> Any:
        record = append(store, primitive)
        kill("worker-committed", 0)
        return record

    Store.append = committing  # type: ignore[method-assign]
    half_written(config, moments, "worker")


if __name__ == "__main__":
    sys.exit(main())
