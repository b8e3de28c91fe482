"""What tells one data set from another: a digest of every split, and of what a model is asked.

A split's fingerprint covers what is asked, what is right, the images' names, and of image files
size and modification time. Images themselves aren't read: that would take hours. Prepared data is
known by the digests of its shards.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from cmoe.common.errors import DataError
from cmoe.common.files import WORKING_COPIES
from cmoe.data.samples import EmbeddedPicture, InlinePicture, Picture, Sample, StoredPicture
from cmoe.data.shards import StoredSamples

CODE = 2  # bytes kept of each sample's digest: enough to say which one changed
THREADS = 32  # that ask for sizes and times; a network's file system answers each one slowly
ASKED_AT_ONCE = 1024
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class ImageFile(NamedTuple):
    """What is known of an image file that isn't read.

    Attributes:
        size: In bytes.
        time: Of its last modification, in nanoseconds; 0 where that says nothing.
    """

    size: int
    time: int


@dataclass(frozen=True)
class Fingerprint:
    """What a split held.

    Attributes:
        samples: How many.
        rows: Digest of their rows, in order: question, answer, further turns, image name.
        sizes: Digest of their images' sizes in bytes.
        times: Digest of their images' modification times.
        each: A short code of each sample, all of the above together; empty for prepared data.
        ids: Of the samples, to name them; they aren't kept.
    """

    samples: int
    rows: str
    sizes: str = ""
    times: str = ""
    each: str = ""
    ids: Sequence[str] = field(default=(), compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """What is kept of it, in JSON's types."""
        return {name: value for name, value in vars(self).items() if name != "ids"}


def fingerprint(
    samples: Sequence[Sample], root: str, files: Mapping[Path, ImageFile]
) -> Fingerprint:
    """Of a split.

    Args:
        samples: Of the split.
        root: Of the data.
        files: What is known of its image files (`image_files`); nothing, where rows alone matter.
    """
    if isinstance(samples, StoredSamples):
        return Fingerprint(len(samples), samples.digest)
    name = _namer(root)
    rows: list[bytes] = []
    sizes: list[bytes] = []
    times: list[bytes] = []
    for s in samples:
        known = [_file(image, files) for image in s.images]
        names = [name(image) for image in s.images]
        more = [s.answers] if s.answers else []
        rows.append(_bytes([s.id, s.text, s.answer, s.further, s.size, _of_one(names), *more]))
        sizes.append(_bytes(_of_one([file and file.size for file in known])))
        times.append(_bytes(_of_one([file and file.time for file in known])))
    return _of_parts([s.id for s in samples], rows, sizes, times)


def _of_one(values: list[Any]) -> Any:
    """What is said of a sample's images: of one image, itself; None of none."""
    return values if len(values) > 1 else next(iter(values), None)


def _namer(root: str) -> Callable[[Picture], Any]:
    """What gives an image's name: its path relative to the root, or its place in what holds it."""
    prefix = f"{Path(root)}{os.sep}"

    def name(image: Picture) -> Any:
        if isinstance(image, StoredPicture):  # a shard's own name holds its digest
            return [Path(image.shard).name, image.group, image.row]
        if isinstance(image, EmbeddedPicture | InlinePicture):
            return image.name
        return str(image).removeprefix(prefix)

    return name


def _file(image: Picture, files: Mapping[Path, ImageFile]) -> ImageFile | None:
    if isinstance(image, EmbeddedPicture):
        return ImageFile(image.size, 0)
    return files.get(image) if isinstance(image, Path) else None


def fingerprint_of_values(values: Mapping[str, Any]) -> Fingerprint:
    """Of values by sample id, all in JSON's types; an answer file's, for example."""
    rows = [_bytes([key, value]) for key, value in values.items()]
    none = [b""] * len(rows)
    return _of_parts([*values], rows, none, none)


def _of_parts(
    ids: Sequence[str], rows: Sequence[bytes], sizes: Sequence[bytes], times: Sequence[bytes]
) -> Fingerprint:
    each = b"".join(
        blake2b(b"\n".join(parts), digest_size=CODE).digest()
        for parts in zip(rows, sizes, times, strict=True)
    )
    of_rows, of_sizes, of_times = (
        sha256(b"\n".join(part)).hexdigest() for part in (rows, sizes, times)
    )
    return Fingerprint(len(ids), of_rows, of_sizes, of_times, b64encode(each).decode(), ids)


def _bytes(value: Any) -> bytes:
    """A value's one form: JSON in ASCII, so that a lone surrogate has one, too."""
    return _ENCODER.encode(value).encode()


def image_files(splits: Iterable[Sequence[Sample]], root: str) -> dict[Path, ImageFile]:
    """What is known of every image file of some splits; each is asked for once.

    Args:
        splits: Prepared ones have no such files.
        root: Of the data.

    Raises:
        DataError: One is missing or can't be reached.
    """
    timed = WORKING_COPIES not in Path(root).absolute().parts  # there times are those of the copy

    def look(files: Sequence[Path]) -> list[ImageFile]:
        found = []
        for file in files:
            try:
                state = os.stat(file)
            except (OSError, ValueError) as error:
                cause = getattr(error, "strerror", None) or error
                raise DataError(f"image {str(file)!r}: {cause}; see data.images") from error
            found.append(ImageFile(state.st_size, state.st_mtime_ns if timed else 0))
        return found

    own = (sample for split in splits if not isinstance(split, StoredSamples) for sample in split)
    every = [*{image: None for s in own for image in s.images if isinstance(image, Path)}]
    parts = [every[at : at + ASKED_AT_ONCE] for at in range(0, len(every), ASKED_AT_ONCE)]
    with ThreadPoolExecutor(THREADS) as threads:
        found = [one for part in threads.map(look, parts) for one in part]
    return dict(zip(every, found, strict=True))


def questions(samples: Sequence[Sample], root: str) -> list[str]:
    """A digest of what each sample asks a model: its text, and which image that is.

    Args:
        samples: Of a split.
        root: Of the data.

    Raises:
        DataError: An image is missing.
    """
    files, name = image_files([samples], root), _namer(root)

    def asked(sample: Sample) -> list[Any]:
        images = sample.asked_about
        names, known = [name(image) for image in images], [_file(image, files) for image in images]
        return [sample.text, _of_one(names), _of_one(known)]

    return [sha256(_bytes(asked(sample))).hexdigest()[:32] for sample in samples]


# What changed


def change(before: Fingerprint, now: Fingerprint) -> str | None:
    """What a split has otherwise than before, in words; None for nothing."""
    if before == now:
        return None
    counts = f"{now.samples} samples, {before.samples} before"
    if not before.each or not now.each:
        return f"other shards, or other rows of them; {counts}"
    old, new = (_codes(one.each) for one in (before, now))
    if before.samples != now.samples:
        return f"{counts}; {_first(old, new, now.ids)}"
    if sorted(old) == sorted(new):
        return f"the same samples in another order; {_first(old, new, now.ids)}"
    count = sum(one != other for one, other in zip(old, new, strict=True))
    if before.rows != now.rows:
        what = "differ"
    elif before.sizes != now.sizes:
        what = "have another image under the same name"
    else:
        what = (
            "have an image that was written again since (its time differs, its size doesn't; "
            "`cp -p` and `rsync -t` keep times)"
        )
    return f"{count or 'some'} of {now.samples} samples {what}; {_first(old, new, now.ids)}"


def _codes(each: str) -> list[bytes]:
    raw = b64decode(each)
    return [raw[start : start + CODE] for start in range(0, len(raw), CODE)]


def _first(old: Sequence[bytes], new: Sequence[bytes], ids: Sequence[str]) -> str:
    pairs = enumerate(zip_longest(old, new))
    at = next((number for number, (one, other) in pairs if one != other), None)
    if at is None:  # two of the short codes are the same
        return "which one isn't known"
    return f"the first that differs is {ids[at]!r}" if at < len(ids) else "the last are gone"
