"""What `ray job submit` would upload, looked at before it does.

Ray calls `check` where `RAY_JOB_SUBMIT_HOOK=cmoe.run.uploads.check` is in the environment. Without
it Ray reads, hashes and packs a working directory whole, and is then refused by its own job server
with `413: Maximum request body size`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from cmoe.common.command_line import refuse
from cmoe.config.environment import is_secret

LIMIT = 100_000_000
"""Bytes of a package at most. Ray's job server takes 100 MiB in a request."""

ENOUGH = 10 * LIMIT  # what is larger isn't counted to its end
RECORD = 30 + 46  # bytes that zip adds to a file, beside its name twice
TOTAL = Path()
PROG = "ray job submit"


def check(
    *,
    runtime_env: str | None = None,
    runtime_env_json: str | None = None,
    working_dir: str | None = None,
    **_: Any,
) -> None:
    """End `ray job submit` with status 2 where its package is too large; warn of keys in the open.

    Args:
        runtime_env: As of `--runtime-env`, a file.
        runtime_env_json: As of `--runtime-env-json`.
        working_dir: As of `--working-dir`.
    """
    from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args

    try:
        asked = parse_runtime_env_args(runtime_env, runtime_env_json, working_dir) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        refuse(PROG, [f"the runtime environment can't be read: {' '.join(str(error).split())}"])
    shown = [name for name in asked.get("env_vars") or {} if is_secret(str(name))]
    if shown:
        sys.stderr.write(
            f"{PROG}: warning: {', '.join(shown)} in env_vars is shown to whoever may list jobs, "
            "in clear (/api/jobs, the dashboard, Ray's logs); SECURITY.md says where keys belong\n"
        )
    problems = []
    for name in filter(None, [asked.get("working_dir"), *(asked.get("py_modules") or [])]):
        if isinstance(name, str) and Path(name).exists() and (said := too_large(name, asked)):
            problems.append(said)
    if problems:
        refuse(PROG, problems)


def too_large(folder: str, runtime_env: Mapping[str, Any]) -> str | None:
    """Why a folder, or a zip file, can't be uploaded, and what to do; None if it can.

    Args:
        folder: Its path.
        runtime_env: Ray's; its `excludes` count.
    """
    sizes = packed(Path(folder), runtime_env.get("excludes") or ())
    total = sum(sizes.values())
    if total <= LIMIT:
        return None
    largest = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in _largest(sizes))
    more = "more than " if total > ENOUGH else ""
    return (
        f"{folder} has {more}{min(total, ENOUGH) / 1e6:,.0f} MB to upload, and {LIMIT / 1e6:.0f} "
        f"MB is the most: {largest}. Name what the job doesn't need in .gitignore or .rayignore (a "
        "line such as /data/) or in the runtime environment's excludes; a job finds data under an "
        "absolute path that all machines have, or s3://bucket/prefix"
    )


def packed(folder: Path, excludes: Any = ()) -> Counter[Path]:
    """Bytes that each file adds to Ray's package, by Ray's own rules of what belongs to it.

    Args:
        folder: Of the package; or one file.
        excludes: Patterns, as in a runtime environment.

    Returns:
        By path relative to the folder. Counting ends soon after `ENOUGH` bytes.
    """
    from ray._private.ray_constants import (
        RAY_RUNTIME_ENV_IGNORE_GITIGNORE,
        get_runtime_env_default_excludes,
    )
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    if folder.is_file():
        return Counter({Path(folder.name): folder.stat().st_size})
    sizes: Counter[Path] = Counter()

    def add(path: Path) -> None:
        if path.is_file():
            name = path.relative_to(folder)
            sizes[name] = path.stat().st_size + RECORD + 2 * len(os.fsencode(name))
            sizes[TOTAL] += sizes[name]
            if sizes[TOTAL] > ENOUGH:
                raise _EnoughError

    quiet = logging.Logger("quiet", logging.CRITICAL)
    patterns = [*get_runtime_env_default_excludes(), *excludes]
    gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    with suppress(_EnoughError):
        _dir_travel(folder, [_get_excludes(folder, patterns)], add, gitignore, quiet)
    del sizes[TOTAL]
    return sizes


def _largest(sizes: Counter[Path], most: int = 3) -> list[tuple[str, int]]:
    """The folders, or files, that have the most: of each branch the deepest that has nearly all."""
    below: Counter[Path] = Counter()
    for path, size in sizes.items():
        for each in (path, *path.parents):
            below[each] += size
    children: dict[Path, list[Path]] = {}
    for path in below.keys() - {Path()}:
        children.setdefault(path.parent, []).append(path)
    found = []
    for path in sorted(children[Path()], key=below.__getitem__, reverse=True)[:most]:
        here = path
        while (inner := max(children.get(here, []), key=below.__getitem__, default=None)) and (
            inner in children and below[inner] > 0.9 * below[here]
        ):
            here = inner
        found.append((f"{here}/" if here in children else f"{here}", below[here]))
    return [(name, size) for name, size in found if size >= 1e6]


class _EnoughError(Exception):
    """Ends the walk."""
