"""From files of rows to Parquet shards: checked, every picture stored once, whole or not at all.

Pictures are scanned (read, hashed, decoded) and stored in parallel by whoever `each` is; rows are
few bytes and go through one process, a split at a time. What was finished before an interruption is
found again by its name: a scan's is a digest of the files it covers, as the file system knows them,
a shard's one of the pictures it holds. The manifest comes last, and the same input gives the same
files, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from cmoe.common.errors import DataError
from cmoe.common.files import publish
from cmoe.common.storage import exists, explained, filesystem
from cmoe.common.storage_errors import READ, WRITTEN
from cmoe.data.image_limits import ImageLimits
from cmoe.data.images import read_image
from cmoe.data.row_rules import Split
from cmoe.data.samples import Picture, name_of
from cmoe.data.shards import FORMAT, IMAGE_SCHEMA, IMAGES, MANIFEST, ROW_SCHEMA, ROWS
from cmoe.data.survey import PARTIAL, SPLITS, Each, Preparation, Scan, Survey, usable_rows, with_box

GROUP_BYTES = 1 << 20  # of pictures in a row group, one picture at least
SHARD_BYTES = 256 << 20  # of pictures in a shard, one row group at least
SHARD_ROWS = 50_000
COMMON = 10  # answers that the statistics name


class Place(NamedTuple):
    """Where a picture is stored."""

    shard: int
    group: int
    row: int


Group = tuple[tuple[Picture, str], ...]
"""Pictures that share a row group: each with its digest."""


def prepare(job: Preparation, found: Survey, each: Each) -> dict[str, Any]:
    """Write the shards and, last, the manifest; shards that are there already stay.

    Args:
        job: Where.
        found: Of the same input, without problems.
        each: Stores pictures.

    Returns:
        The manifest.

    Raises:
        DataError: A picture changed after it was scanned.
    """
    shards, places = plan(found.pictures)
    stored = list(each(partial(store, job.out, job.limits), shards))
    manifest = {
        "format": FORMAT,
        "tasks": {t: {s: _store_rows(job, t, s, places, found) for s in SPLITS} for t in job.tasks},
        "images": {
            "pictures": sum(shard["pictures"] for shard in stored),
            "bytes": sum(shard["bytes"] for shard in stored),
            "shards": stored,
        },
    }
    publish((json.dumps(manifest, indent=1) + "\n").encode(), f"{job.out}/{MANIFEST}")
    fs, path = filesystem(f"{job.out}/{PARTIAL}")
    with explained(job.out, WRITTEN):
        if isinstance(fs, LocalFileSystem):  # fsspec would take the path for a pattern
            shutil.rmtree(path, ignore_errors=True)
        elif fs.isdir(path):
            fs.rm(path, recursive=True)
    return manifest


def plan(
    pictures: Mapping[Picture, Scan],
) -> tuple[list[tuple[Group, ...]], dict[Picture, Place]]:
    """What goes into which shard and row group, and where each picture is then found.

    Pictures of the same bytes are stored once. Those first used together lie together.
    """
    shards: list[list[list[tuple[Picture, str]]]] = []
    places: dict[Picture, Place] = {}
    by_digest: dict[str, Place] = {}
    in_group = in_shard = 0
    for picture, one in pictures.items():
        if one.sha256 not in by_digest:
            if not shards or (in_group + one.bytes > GROUP_BYTES and shards[-1][-1]):
                if not shards or in_shard + one.bytes > SHARD_BYTES:
                    shards.append([])
                    in_shard = 0
                shards[-1].append([])
                in_group = 0
            group = shards[-1][-1]
            by_digest[one.sha256] = Place(len(shards) - 1, len(shards[-1]) - 1, len(group))
            group.append((picture, one.sha256))
            in_group += one.bytes
            in_shard += one.bytes
        places[picture] = by_digest[one.sha256]
    return [tuple(tuple(group) for group in shard) for shard in shards], places


def store(out: str, limits: ImageLimits, groups: tuple[Group, ...]) -> dict[str, Any]:
    """Write a shard of pictures, a row group at a time.

    Raises:
        DataError: A picture's bytes are not those that were scanned, or can't be read any more.
    """
    digests = "\n".join(digest for group in groups for _, digest in group)
    name = f"{IMAGES}/{hashlib.sha256(digests.encode()).hexdigest()[:16]}.parquet"
    if exists(f"{out}/{name}"):
        fs, path = filesystem(f"{out}/{name}")
        with explained(f"{out}/{name}", READ):
            digest, size = _digest(fs.open(path, "rb"))
    else:
        with tempfile.TemporaryDirectory() as beside:
            file = Path(beside) / "shard.parquet"
            with explained(file, WRITTEN):
                with pq.ParquetWriter(file, IMAGE_SCHEMA, compression="none") as writer:
                    for group in groups:
                        table = _picture_table(limits, group)
                        writer.write_table(table, row_group_size=len(group))
                digest, size = _digest(file.open("rb"))
            publish(file, f"{out}/{name}")
    count = sum(map(len, groups))
    return {"file": name, "pictures": count, "bytes": size, "sha256": digest}


def _picture_table(limits: ImageLimits, group: Group) -> pa.Table:
    data = [read_image(picture, limits) for picture, _ in group]
    for (picture, digest), found in zip(group, data, strict=True):
        if hashlib.sha256(found).hexdigest() != digest:
            raise DataError(f"{name_of(picture)} changed while it was prepared; start again")
    return pa.table([[digest for _, digest in group], data], schema=IMAGE_SCHEMA)


def _store_rows(
    job: Preparation, task: str, split: Split, places: Mapping[Picture, Place], found: Survey
) -> dict[str, Any]:
    """Write a split's rows; what the manifest says of them."""
    answers: Counter[str] = Counter()
    shards: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    boxed, folder = job.rule(task, split).boxed, job.pictures(task)
    for _, sample in usable_rows(job, task, split):
        if boxed:
            sample = with_box(sample, [found.pictures[picture] for picture in sample.images])
        answers[sample.answer] += 1
        rows.append(
            {
                "question_id": sample.id,
                "text": sample.text,
                "answer": sample.answer,
                "answers": sample.answers,
                "further": [turn._asdict() for turn in sample.further],
                "images": [
                    places[picture]._asdict() | {"name": _name(picture, folder)}
                    for picture in sample.images
                ],
                "size": sample.size,
            }
        )
        if len(rows) == SHARD_ROWS:
            shards.append(_store_shard(job.out, f"{task}-{split}-{len(shards):05d}", rows))
            rows = []
    if rows:
        shards.append(_store_shard(job.out, f"{task}-{split}-{len(shards):05d}", rows))
    return {
        "rows": sum(shard["rows"] for shard in shards),
        "answers": {
            "distinct": len(answers),
            "characters": round(sum(len(a) * n for a, n in answers.items()) / answers.total(), 2),
            "longest": max(map(len, answers)),
            "most_common": dict(answers.most_common(COMMON)),
        },
        "shards": shards,
    }


def _name(picture: Picture, folder: Path) -> str:
    """What a data set calls a picture: its path, where it has one."""
    return picture.relative_to(folder).as_posix() if isinstance(picture, Path) else picture.name


def _store_shard(out: str, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), buffer, compression="zstd")
    data = buffer.getvalue().to_pybytes()
    digest = hashlib.sha256(data).hexdigest()
    file = f"{ROWS}/{name}-{digest[:12]}.parquet"
    publish(data, f"{out}/{file}")
    return {"file": file, "rows": len(rows), "sha256": digest}


def _digest(file: Any) -> tuple[str, int]:
    """sha256 and size of an open file, which is closed."""
    with file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()
