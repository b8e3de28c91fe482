"""CoIN's files, read before they are stored: every row and every image, and all that is wrong.

Images are scanned (read, hashed, decoded) in parallel by whoever `each` is. Finished scans are
kept: a scan's name is a digest of the files that it covers, as the file system knows them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cmoe.common.errors import DataError
from cmoe.common.files import publish
from cmoe.common.parsing import parse_json
from cmoe.common.storage import exists, explained, filesystem
from cmoe.common.storage_errors import READ
from cmoe.data import boxes
from cmoe.data.boxes import BOXED
from cmoe.data.coin import read_json, split_file
from cmoe.data.image_limits import ImageLimits
from cmoe.data.images import ImageError, open_image, read_image, to_rgb
from cmoe.data.row_rules import Ids, RowRule, Split, named
from cmoe.data.rows import image_paths, read_row
from cmoe.data.samples import Sample, name_of

SPLITS: tuple[Split, ...] = ("train", "test")
PARTIAL = "partial"  # finished scans, until the manifest is there
CHUNK = 256  # pictures a scan


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


def survey(job: Preparation, each: Each, *, keep: bool) -> Survey:
    """Read every row and every picture.

    Args:
        job: What to read.
        each: Scans pictures.
        keep: Keep finished scans for the next start.
    """
    found = Survey()
    users: dict[str, tuple[str, str]] = {}
    boxed: list[tuple[str, tuple[str, ...], Sample]] = []
    for task in job.tasks:
        for split in SPLITS:
            for where, sample, named_images in usable_rows(job, task, split, found.problems):
                found.rows += 1
                for name in named_images:
                    users.setdefault(name, (where, sample.id))
                if task == BOXED:
                    boxed.append((where, named_images, sample))
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
    for where, named_images, sample in boxed:
        pictures = [found.pictures[name] for name in named_images]
        if any(picture.wrong for picture in pictures):
            continue
        try:
            with_box(sample, pictures)
        except DataError as error:
            found.problems.append(f"{where}: {named(error, sample.id)}")
    return found


def with_box(sample: Sample, pictures: Sequence[Scan]) -> Sample:
    """A sample of Grounding, with the size that its box needs.

    Args:
        sample: With its answer.
        pictures: As its images were found.

    Raises:
        DataError: As `boxes.checked`.
    """
    sizes = [(picture.width, picture.height) for picture in pictures]
    return boxes.checked(sample, lambda: sizes[0] if len(sizes) == 1 else None)


def usable_rows(
    job: Preparation, task: str, split: Split, problems: list[str] | None = None
) -> Iterator[tuple[str, Sample, tuple[str, ...]]]:
    """A split's usable rows: where each stands, what it says, and its images' paths."""
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
        yield where, sample, image_paths(row)


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
