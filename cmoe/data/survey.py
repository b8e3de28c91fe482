"""Files of rows, read before they are stored: every row and every image, and all that is wrong.

Images are scanned (read, hashed, decoded) in parallel by whoever `each` is. Finished scans are
kept: a scan's name is a digest of the files that it covers, as the file system knows them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cmoe.common.errors import DataError
from cmoe.common.files import publish
from cmoe.common.parsing import parse_json
from cmoe.common.storage import exists, explained, filesystem
from cmoe.common.storage_errors import READ
from cmoe.data import boxes
from cmoe.data.coin import read_json, split_file
from cmoe.data.formats.coin_rows import coin_rows
from cmoe.data.formats.own_rows import OwnRows
from cmoe.data.formats.parsed import Parsed
from cmoe.data.image_limits import ImageLimits
from cmoe.data.images import ImageError, open_image, read_image, to_rgb
from cmoe.data.row_rules import BaseRule, RowRule, Split, named
from cmoe.data.samples import EmbeddedPicture, Picture, Sample, name_of
from cmoe.data.settings import DataConfig, OwnTask

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
    """Files of rows on one side, Parquet on the other.

    Attributes:
        root: Folder with `Instructions_Original/`, or what files of own tasks are relative to.
        images: Folder that picture paths are relative to; itself relative to `root`.
        tasks: Which to prepare, in the order of the stream.
        out: Where the shards go: a folder or a URL that fsspec knows.
        base: What the rows are for.
        limits: Of pictures.
        own: The user's own tasks among them, by name.
    """

    root: Path
    images: str
    tasks: tuple[str, ...]
    out: str
    base: BaseRule = field(default_factory=BaseRule)
    limits: ImageLimits = field(default_factory=ImageLimits)
    own: Mapping[str, OwnTask] = field(default_factory=dict)

    @cached_property
    def data(self) -> DataConfig:
        """The same as a section of a configuration."""
        return DataConfig(str(self.root), self.images, self.tasks, dict(self.own))

    def rule(self, task: str, split: Split) -> RowRule:
        """What a split's rows are held to."""
        return RowRule(task, split, self.base, self.data.scorer(task))

    def pictures(self, task: str) -> Path:
        """The folder that a task's picture paths are relative to."""
        return self.root / self.data.images_of(task)


@dataclass
class Survey:
    """All that is known before a shard is written.

    Attributes:
        problems: What keeps rows and pictures from being used, each with its file and row.
        pictures: In the order of first use.
        rows: How many were read.
        formats: Of the files of own tasks, a line each.
    """

    problems: list[str] = field(default_factory=list)
    pictures: dict[Picture, Scan] = field(default_factory=dict)
    rows: int = 0
    formats: list[str] = field(default_factory=list)


def survey(job: Preparation, each: Each, *, keep: bool) -> Survey:
    """Read every row and every picture.

    Args:
        job: What to read.
        each: Scans pictures.
        keep: Keep finished scans for the next start.
    """
    found = Survey()
    users: dict[Picture, tuple[str, str]] = {}
    boxed: list[tuple[str, Sample]] = []
    for task in job.tasks:
        for split in SPLITS:
            for where, sample in usable_rows(job, task, split, found):
                found.rows += 1
                for picture in sample.images:
                    users.setdefault(picture, (where, sample.id))
                if job.rule(task, split).boxed:
                    boxed.append((where, sample))
    pictures = list(users)
    chunks = [tuple(pictures[i : i + CHUNK]) for i in range(0, len(pictures), CHUNK)]
    kept = f"{job.out}/{PARTIAL}" if keep else None
    scanning = partial(scan, kept, job.limits)
    for chunk, scans in zip(chunks, each(scanning, chunks), strict=True):
        found.pictures |= zip(chunk, scans, strict=True)
    for picture, one in found.pictures.items():
        if one.wrong:
            where, known = users[picture]
            found.problems.append(f"{where}: {named(DataError(one.wrong), known)}")
    for where, sample in boxed:
        scanned = [found.pictures[picture] for picture in sample.images]
        if any(one.wrong for one in scanned):
            continue
        try:
            with_box(sample, scanned)
        except DataError as error:
            found.problems.append(f"{where}: {named(error, sample.id)}")
    return found


def with_box(sample: Sample, pictures: Sequence[Scan]) -> Sample:
    """A sample of boxes, with the size that its box needs.

    Args:
        sample: With its answer.
        pictures: As its images were found.

    Raises:
        DataError: As `boxes.checked`.
    """
    sizes = [(picture.width, picture.height) for picture in pictures]
    return boxes.checked(sample, lambda: sizes[0] if len(sizes) == 1 else None)


def usable_rows(
    job: Preparation, task: str, split: Split, found: Survey | None = None
) -> Iterator[tuple[str, Sample]]:
    """A split's usable rows: where each stands, and what it says.

    Args:
        job: What to read.
        task: One of its tasks.
        split: Of the task.
        found: Gets what is wrong with the others.
    """
    found = Survey() if found is None else found
    count = 0
    try:
        own = OwnRows(job.data, job.rule(task, split)) if task in job.own else None
        rows = own.parsed() if own else _coin(job, task, split)
        for where, sample in rows:
            count += 1
            if isinstance(sample, DataError):
                found.problems.append(f"{where}: {sample}")
            else:
                yield where, sample
    except DataError as error:
        found.problems.append(str(error))
        return
    if own is not None:
        found.formats.append(own.told(count))
        if not count:
            found.problems.append(str(own.none()))


def _coin(job: Preparation, task: str, split: Split) -> Parsed:
    file = split_file(job.root, task, split)
    return coin_rows(file, read_json(file), job.pictures(task), job.rule(task, split))


def scan(kept: str | None, limits: ImageLimits, pictures: tuple[Picture, ...]) -> list[Scan]:
    """Read, hash and decode some pictures; those kept from an earlier start are read from there.

    Scans are kept where nothing is wrong, so that what is mended is scanned again; and under the
    size and times of the files, so that what is replaced is.
    """
    known = "\n".join([repr(limits), *(f"{_state(picture)} {picture!r}" for picture in pictures)])
    digest = hashlib.sha256(known.encode(errors="surrogatepass")).hexdigest()
    if kept is not None and exists(f"{kept}/{digest}.json"):
        fs, path = filesystem(f"{kept}/{digest}.json")
        with explained(f"{kept}/{digest}.json", READ):
            return [Scan(*row) for row in parse_json(fs.cat_file(path))]
    scans = [_scan(picture, limits) for picture in pictures]
    if kept is not None and not any(one.wrong for one in scans):
        publish(json.dumps(scans).encode(), f"{kept}/{digest}.json")
    return scans


def _state(picture: Picture) -> str:
    """What changes with a file. Its change time does so where its modification time is kept."""
    if isinstance(picture, EmbeddedPicture):
        picture = Path(picture.file)
    if not isinstance(picture, Path):
        return "within"
    try:
        found = picture.stat()
    except (OSError, ValueError):
        return "none"
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _scan(file: Picture, limits: ImageLimits) -> Scan:
    try:
        data = read_image(file, limits)
        image = open_image(data, limits, name_of(file))
        width, height = image.size
        image.draft(None, (64, 64))  # a JPEG is read to its end, and decoded smaller
        to_rgb(image, name_of(file))
    except ImageError as error:
        return Scan(wrong=str(error))
    return Scan(hashlib.sha256(data).hexdigest(), len(data), width, height)
