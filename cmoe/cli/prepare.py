"""Check files of rows and convert them to Parquet: CoIN's, or those of `--config`'s data section.

Rows are checked and images are read, hashed and decoded on all cores of the Ray cluster. All
problems are reported at once; shards are written only if there are none. Killed and started again,
it goes on, and ends with the same files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmoe.common.command_line import Parser, has_flag
from cmoe.data.settings import DataConfig
from cmoe.tasks.registry import require_known

if TYPE_CHECKING:
    from cmoe.data.survey import Preparation
    from cmoe.modeling.settings import ModelConfig


def main(words: Sequence[str], prog: str) -> int:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("--config", help="of a run; its data section and its base")
    parser.add_argument(
        "--root",
        required=not has_flag(words, "--config"),
        help="has Instructions_Original/, or files of own tasks",
    )
    parser.add_argument("--images", help="image paths are relative to it; in root")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="in their order")
    parser.add_argument("--out", help="a folder or a URL such as s3://bucket/prefix")
    parser.add_argument("--model", help="whose tokens no text may hold")
    parser.add_argument("--dry-run", action="store_true", help="report problems, write nothing")
    asked = parser.parse_args(words)
    if not asked.out and not asked.dry_run:
        parser.error("--out is needed, or --dry-run")
    data, model = _configured(asked.config, prog)
    tasks = data.tasks if asked.tasks is None else tuple(asked.tasks)
    try:
        require_known(tasks, "--tasks", data.own)
    except ValueError as error:
        parser.error(str(error))
    if not asked.dry_run and is_prepared(asked.out):
        return 0
    from cmoe.data.survey import Preparation
    from cmoe.modeling.settings import ModelConfig
    from cmoe.run.all_cores import ray_here
    from cmoe.tasks.base_rule import base_rule

    if asked.model is not None:
        model = ModelConfig(asked.model)
    job = Preparation(
        Path(asked.root or data.root),
        asked.images or data.images,
        tasks,
        asked.out or "",
        base_rule(model),
        own={name: own for name, own in data.own.items() if name in tasks},
    )
    with ray_here():
        return run(job, dry=asked.dry_run)


def _configured(file: str | None, prog: str) -> tuple[DataConfig, ModelConfig]:
    """The data and the base of a run's configuration; without one, CoIN and the mini base."""
    from cmoe.config.parse import parse
    from cmoe.modeling.settings import ModelConfig

    if file is None:
        return DataConfig(), ModelConfig()
    found = parse(["--name", "prepared", "--config", file], prog)
    return found.data, found.model


def is_prepared(out: str) -> bool:
    """Whether all is done already; refuses a place that can't be written, before images are read.

    Raises:
        StorageError: Says what is wrong with the place.
    """
    from cmoe.common.exclusive import require_exclusive
    from cmoe.common.storage import filesystem, require_reachable
    from cmoe.data.shards import MANIFEST, read_manifest

    require_reachable(out)
    if read_manifest(out):
        print(f"{out}/{MANIFEST} is there: prepared already; remove it to prepare again")
        return True
    require_exclusive(*filesystem(out), out)
    return False


def run(job: Preparation, *, dry: bool) -> int:
    """Report what is wrong, or write the shards; returns the exit status."""
    from cmoe.data.prepare import prepare
    from cmoe.data.survey import survey
    from cmoe.run.all_cores import on_all_cores

    start = time.monotonic()
    found = survey(job, on_all_cores("scanned"), keep=not dry)
    for line in found.formats:
        print(line)
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
