"""CoIN's files to Parquet: `python ray_jobs/coin_prepare.py --root DIR --out DIR_OR_URL`.

Rows are checked and pictures read, hashed and decoded on all cores of the Ray cluster. All problems
are reported at once; shards are written only if there are none. Killed and started again, it goes
on, and ends with the same files. README, "CoIN's files", says where every picture comes from.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ray

from cmoe.common.command_line import Parser
from cmoe.common.errors import DataError
from cmoe.common.exclusive import require_exclusive
from cmoe.common.storage import StorageError, explained, filesystem, require_reachable
from cmoe.data.prepare import Each, Preparation, prepare, survey
from cmoe.data.settings import TASKS, require_known
from cmoe.data.shards import MANIFEST, read_manifest
from cmoe.data.texts import reserved_tokens
from cmoe.modeling.base import UnsupportedModelError
from cmoe.modeling.pretrained import MissingModelError, load_processor
from cmoe.modeling.settings import ModelConfig
from cmoe.run.cluster import connect


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="has Instructions_Original/")
    parser.add_argument("--images", default=".", help="picture paths are relative to it; in root")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK", help="in their order")
    parser.add_argument("--out", help="a folder or a URL such as s3://bucket/prefix")
    parser.add_argument("--model", default="mini", help="whose tokens no text may hold")
    parser.add_argument("--dry-run", action="store_true", help="report problems, write nothing")
    asked = parser.parse_args()
    if not asked.out and not asked.dry_run:
        parser.error("--out is needed, or --dry-run")
    try:
        require_known(asked.tasks, "--tasks")
    except ValueError as error:
        parser.error(str(error))
    try:
        with explained(None):
            if not asked.dry_run:
                require_reachable(asked.out)
                if read_manifest(asked.out):
                    there = f"{asked.out}/{MANIFEST} is there"
                    print(f"{there}: prepared already; remove it to prepare again")
                    return 0
                # Before all pictures are read.
                require_exclusive(*filesystem(asked.out), asked.out)
            tokens = reserved_tokens(load_processor(ModelConfig(asked.model).path))
            job = Preparation(asked.root, asked.images, tuple(asked.tasks), asked.out or "", tokens)
            connect()
            return run(job, dry=asked.dry_run)
    except (DataError, MissingModelError, StorageError, UnsupportedModelError) as error:
        print(f"coin_prepare.py: {error}", file=sys.stderr)
        return 1
    finally:
        ray.shutdown()


def run(job: Preparation, *, dry: bool) -> int:
    start = time.monotonic()
    found = survey(job, on_all_cores("scanned"), keep=not dry)
    for problem in found.problems:
        print(problem)
    what = f"{found.rows:,} rows, {len(found.pictures):,} pictures"
    print(f"{what}, {len(found.problems):,} problems", flush=True)
    if found.problems or dry:
        return bool(found.problems)
    manifest = prepare(job, found, on_all_cores("stored"))
    images, seconds = manifest["images"], time.monotonic() - start
    stored = f"{images['pictures']:,} of different bytes in {len(images['shards'])} shards"
    print(f"{stored}; {found.rows / seconds:,.0f} rows a second, {seconds:.0f} s\n{job.out}")
    return 0


def on_all_cores(done: str) -> Each:
    """Ray tasks, as many at a time as keep all cores busy: memory doesn't grow with the input."""

    def each(function: Any, items: Iterable[Any]) -> Iterator[Any]:
        task = ray.remote(lambda item: function(item))  # a partial isn't a function to Ray
        limit = 2 * int(ray.cluster_resources().get("CPU", 1))
        running: deque[Any] = deque()
        shown, count = time.monotonic(), 0
        for item in items:
            if len(running) == limit:
                yield taken(running.popleft())
                count += 1
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    print(f"{count:,} parts {done}", flush=True)
            running.append(task.remote(item))
        while running:
            yield taken(running.popleft())

    def taken(task: Any) -> Any:
        try:
            return ray.get(task)
        except (DataError, StorageError) as error:  # with Ray's own text around it
            raise getattr(error, "cause", error) from None

    return each


if __name__ == "__main__":
    sys.exit(main())
