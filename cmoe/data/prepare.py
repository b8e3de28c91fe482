"""From CoIN's files to Parquet shards: checked, every picture stored once, whole or not at all.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from cmoe.common.errors import DataError
from cmoe.common.files import whole
from cmoe.common.parsing import parse_json
from cmoe.common.storage import READ, WRITTEN, exists, explained, filesystem
from cmoe.data import boxes
from cmoe.data.boxes import BOXED
from cmoe.data.coin import read_json, split_file
from cmoe.data.image_limits import ImageLimits
from cmoe.data.images import ImageError, open_image, read_image, to_rgb
from cmoe.data.row_rules import Ids, RowRule, Split, named
from cmoe.data.rows import read_row
from cmoe.data.samples import Sample, name_of
from cmoe.data.shards import FORMAT, IMAGE_SCHEMA, IMAGES, MANIFEST, ROW_SCHEMA, ROWS

SPLITS: tuple[Split, ...] = ("train", "test")
PARTIAL = "partial"  # finished scans, until the manifest is there
CHUNK = 256  # pictures a scan
GROUP_BYTES = 1 << 20  # of pictures in a row group, one picture at least
SHARD_BYTES = 256 << 20  # of pictures in a shard, one row group at least
SHARD_ROWS = 50_000
COMMON = 10  # answers that the statistics name


class Each(Protocol):
    """Applies a function to every item, anywhere; yields the results in the items' order."""

    def __call__(
        self, function: Callable[[Any], Any], items: Iterable[Any], /
    ) -> Iterator[Any]: ...


class Scan(NamedTuple):
    """A picture as it was found: digest, bytes, width and height; or what is wrong, by its name."""

    sha256: str = ""
    bytes: int = 0
    width: int = 0
    height: int = 0
    wrong: str = ""


class Place(NamedTuple):
    """Where a picture is stored."""

    shard: int
    group: int
    row: int


Group = tuple[tuple[str, str], ...]
"""Pictures that share a row group: path and digest of each."""


@dataclass(frozen=True)
class Preparation:
    """CoIN's files on one side, Parquet on the other.

    Attributes:
        root: Folder with `Instructions_Original/`.
        images: Folder that picture paths are relative to; itself relative to `root`.
        tasks: Which to prepare, in the order of the stream.
        out: Where the shards go: a folder or a URL that fsspec knows.
        tokens: Of the base (`reserved_tokens`), which no text may hold.
        limits: Of pictures.
    """

    root: Path
    images: str
    tasks: tuple[str, ...]
    out: str
    tokens: tuple[str, ...] = ()
    limits: ImageLimits = field(default_factory=ImageLimits)

    @property
    def pictures(self) -> Path:
        return self.root / self.images


@dataclass
class Survey:
    """All that is known before a shard is written.

    Attributes:
        problems: What keeps rows and pictures from being used, each with its file and row.
        pictures: By path, in the order of first use.
        rows: How many were read.
    """

    problems: list[str] = field(default_factory=list)
    pictures: dict[str, Scan] = field(default_factory=dict)
    rows: int = 0


# Reading: everything that is wrong, at once


def survey(job: Preparation, each: Each, *, keep: bool) -> Survey:
    """Read every row and every picture.

    Args:
        job: What to read.
        each: Scans pictures.
        keep: Keep finished scans for the next start.
    """
    found = Survey()
    users: dict[str, tuple[str, str]] = {}
    boxed: list[tuple[str, str, Sample]] = []
    for task in job.tasks:
        for split in SPLITS:
            for where, sample, name in _rows(job, task, split, found.problems):
                found.rows += 1
                if name:
                    users.setdefault(name, (where, sample.id))
                if task == BOXED:
                    boxed.append((where, name, sample))
    names = list(users)
    chunks = [tuple(names[i : i + CHUNK]) for i in range(0, len(names), CHUNK)]
    kept = f"{job.out}/{PARTIAL}" if keep else None
    scanning = partial(scan, job.pictures, kept, job.limits)
    for chunk, scans in zip(chunks, each(scanning, chunks), strict=True):
        found.pictures |= zip(chunk, scans, strict=True)
    for name, one in found.pictures.items():
        if one.wrong:
            where, known = users[name]
            found.problems.append(f"{where}: {named(DataError(one.wrong), known)}")
    for where, name, sample in boxed:
        picture = found.pictures.get(name)
        if picture is not None and picture.wrong:
            continue
        try:
            with_box(sample, picture)
        except DataError as error:
            found.problems.append(f"{where}: {named(error, sample.id)}")
    return found


def with_box(sample: Sample, picture: Scan | None) -> Sample:
    """A sample of Grounding, with the size that its box needs.

    Args:
        sample: With its answer.
        picture: As its picture was found; None for a sample without.

    Raises:
        DataError: As `boxes.checked`.
    """
    return boxes.checked(sample, lambda: picture and (picture.width, picture.height))


def _rows(
    job: Preparation, task: str, split: Split, problems: list[str] | None = None
) -> Iterator[tuple[str, Sample, str]]:
    """A split's usable rows: where each stands, what it says, and its picture's path or ''."""
    problems = [] if problems is None else problems
    try:
        file = split_file(job.root, task, split)
        rows = read_json(file)
    except DataError as error:
        problems.append(str(error))
        return
    rule, ids = RowRule(task, split, job.tokens), Ids(split)
    for number, row in enumerate(rows):
        where = f"{file}, row {number}"
        try:
            sample = read_row(row, job.pictures, rule)
            ids.add(sample.id, number)
        except DataError as error:
            problems.append(f"{where}: {error}")
            continue
        yield where, sample, row["image"] if sample.image is not None else ""


def scan(
    pictures: Path, kept: str | None, limits: ImageLimits, names: tuple[str, ...]
) -> list[Scan]:
    """Read, hash and decode some pictures; those kept from an earlier start are read from there.

    Scans are kept where nothing is wrong, so that what is mended is scanned again; and under the
    size and times of the files, so that what is replaced is.
    """
    files = [pictures / name for name in names]
    known = "\n".join([repr(limits), *(f"{_state(file)} {file}" for file in files)])
    digest = hashlib.sha256(known.encode(errors="surrogatepass")).hexdigest()
    if kept is not None and exists(f"{kept}/{digest}.json"):
        fs, path = filesystem(f"{kept}/{digest}.json")
        with explained(f"{kept}/{digest}.json", READ):
            return [Scan(*row) for row in parse_json(fs.cat_file(path))]
    scans = [_scan(file, limits) for file in files]
    if kept is not None and not any(one.wrong for one in scans):
        publish(json.dumps(scans).encode(), f"{kept}/{digest}.json")
    return scans


def _state(file: Path) -> str:
    """What changes with a file. Its change time does so where its modification time is kept."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return "none"
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _scan(file: Path, limits: ImageLimits) -> Scan:
    try:
        data = read_image(file, limits)
        image = open_image(data, limits, name_of(file))
        width, height = image.size
        image.draft(None, (64, 64))  # a JPEG is read to its end, and decoded smaller
        to_rgb(image, name_of(file))
    except ImageError as error:
        return Scan(wrong=str(error))
    return Scan(hashlib.sha256(data).hexdigest(), len(data), width, height)


# Writing


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
    stored = list(each(partial(store, job.pictures, job.out, job.limits), shards))
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


def plan(pictures: Mapping[str, Scan]) -> tuple[list[tuple[Group, ...]], dict[str, Place]]:
    """What goes into which shard and row group, and where each path's picture is then found.

    Pictures of the same bytes are stored once. Those first used together lie together.
    """
    shards: list[list[list[tuple[str, str]]]] = []
    places: dict[str, Place] = {}
    by_digest: dict[str, Place] = {}
    in_group = in_shard = 0
    for name, one in pictures.items():
        if one.sha256 not in by_digest:
            if not shards or (in_group + one.bytes > GROUP_BYTES and shards[-1][-1]):
                if not shards or in_shard + one.bytes > SHARD_BYTES:
                    shards.append([])
                    in_shard = 0
                shards[-1].append([])
                in_group = 0
            group = shards[-1][-1]
            by_digest[one.sha256] = Place(len(shards) - 1, len(shards[-1]) - 1, len(group))
            group.append((name, one.sha256))
            in_group += one.bytes
            in_shard += one.bytes
        places[name] = by_digest[one.sha256]
    return [tuple(tuple(group) for group in shard) for shard in shards], places


def store(
    pictures: Path, out: str, limits: ImageLimits, groups: tuple[Group, ...]
) -> dict[str, Any]:
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
                        table = _picture_table(pictures, limits, group)
                        writer.write_table(table, row_group_size=len(group))
                digest, size = _digest(file.open("rb"))
            publish(file, f"{out}/{name}")
    count = sum(map(len, groups))
    return {"file": name, "pictures": count, "bytes": size, "sha256": digest}


def _picture_table(pictures: Path, limits: ImageLimits, group: Group) -> pa.Table:
    data = [read_image(pictures / name, limits) for name, _ in group]
    for (name, digest), found in zip(group, data, strict=True):
        if hashlib.sha256(found).hexdigest() != digest:
            raise DataError(f"picture {pictures / name} changed while it was prepared; start again")
    return pa.table([[digest for _, digest in group], data], schema=IMAGE_SCHEMA)


def _store_rows(
    job: Preparation, task: str, split: Split, places: Mapping[str, Place], found: Survey
) -> dict[str, Any]:
    """Write a split's rows; what the manifest says of them."""
    answers: Counter[str] = Counter()
    shards: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for _, sample, name in _rows(job, task, split):
        if task == BOXED:
            sample = with_box(sample, found.pictures.get(name))
        answers[sample.answer] += 1
        rows.append(
            {
                "question_id": sample.id,
                "text": sample.text,
                "answer": sample.answer,
                "further": [turn._asdict() for turn in sample.further],
                "image": places[name]._asdict() if name else None,
                "picture": name or None,
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


def publish(content: bytes | Path, url: str) -> None:
    """Put a file where it belongs, whole or not at all; a folder for it is made."""
    fs, path = filesystem(url)
    with explained(url, WRITTEN):
        if isinstance(fs, LocalFileSystem):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with whole(Path(path)) as beside:
                if isinstance(content, Path):
                    fs.put_file(str(content), str(beside))
                else:
                    beside.write_bytes(content)
        elif isinstance(content, Path):  # an object store shows an upload once it is complete
            fs.put_file(str(content), path)
        else:
            fs.pipe_file(path, content)
