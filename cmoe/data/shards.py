"""CoIN as Parquet: rows that point to pictures, each picture stored once.

<root>/manifest.json                       what there is; written last
<root>/rows/<Task>-<split>-<number>-<digest>.parquet
<root>/images/<digest>.parquet             in row groups of about a megabyte, bytes as they were

A root is a folder, a URL that fsspec knows (`s3://bucket/prefix`), or a data set on the Hugging
Face hub, `hf://datasets/<owner>/<name>[@revision]`, which is taken from the hub's cache.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from cmoe.common.errors import DataError
from cmoe.common.files import whole
from cmoe.common.storage import exists, explained, filesystem, is_local
from cmoe.common.storage_errors import READ, WRITTEN
from cmoe.data.formats.documents import parse_document
from cmoe.data.row_rules import Ids, RowRule, require_usable, shown
from cmoe.data.samples import Sample, StoredPicture, Turn

MANIFEST, ROWS, IMAGES = "manifest.json", "rows", "images"
FORMAT = 2
READABLE = (1, FORMAT)
"""Formats that are read: in the first, a question has one image at most, and one answer."""
HUB = "hf://datasets/"

ROW_SCHEMA = pa.schema(
    {
        "question_id": pa.string(),
        "text": pa.string(),
        "answer": pa.string(),
        "answers": pa.list_(pa.string()),
        "further": pa.list_(pa.struct({"text": pa.string(), "answer": pa.string()})),
        "images": pa.list_(
            pa.struct(
                {"shard": pa.int32(), "group": pa.int32(), "row": pa.int32(), "name": pa.string()}
            )
        ),
        "size": pa.list_(pa.int32()),
    }
)
"""A question. `images` says where each of its images lies, and what its data set calls it."""

FIRST_COLUMNS = ("question_id", "text", "answer", "further", "image", "picture", "size")
"""Of the first format."""

IMAGE_SCHEMA = pa.schema({"sha256": pa.string(), "bytes": pa.binary()})


def find_root(root: str) -> str:
    """Where a root can be read: a hub's data set from the local cache, after fetching it there.

    Raises:
        DataError: It is neither on the hub nor in the cache; names the command that fetches it.
    """
    if not root.startswith(HUB):
        return root
    name, _, revision = root.removeprefix(HUB).partition("@")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(name, repo_type="dataset", revision=revision or None)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        fetch = f"hf download --repo-type dataset {name}"
        fetch += f" --revision {revision}" if revision else ""
        raise DataError(
            f"{root}: neither on the hub nor in its cache ({type(error).__name__}). With a "
            f"network, `{fetch}` fetches it"
        ) from error


def read_manifest(root: str) -> dict[str, Any] | None:
    """What a prepared root holds; None if it isn't one.

    Raises:
        DataError: The manifest can't be read, or is of another format.
    """
    if not exists(f"{root}/{MANIFEST}"):
        return None
    fs, path = filesystem(root)
    where = f"{root}/{MANIFEST}"
    with explained(where, READ):
        data = fs.cat_file(f"{path}/{MANIFEST}")
    manifest = parse_document(data, f"{where}: not a manifest")
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise DataError(f"{where}: not a manifest of prepared data; it has no format")
    if manifest["format"] not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise DataError(
            f"{where}: format {shown(manifest['format'])}, this version reads {known}; prepare "
            "the data again"
        )
    if not _is_manifest(manifest):
        raise DataError(
            f"{where}: not a manifest of prepared data; it needs tasks, each with its splits and "
            "their number of rows"
        )
    return manifest


def _is_manifest(manifest: Mapping[str, Any]) -> bool:
    tasks = manifest.get("tasks")
    return isinstance(tasks, dict) and all(
        isinstance(splits, dict)
        and all(isinstance(s, dict) and type(s.get("rows")) is int for s in splits.values())
        for splits in tasks.values()
    )


def read_rows(root: str, manifest: Mapping[str, Any], task: str, split: str) -> StoredSamples:
    """All samples of a split, read from the disk as they are asked for.

    Raises:
        DataError: The root has no such task or split, or a shard of it is missing.
    """
    from datasets import Dataset, disable_progress_bars
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    splits = manifest["tasks"].get(task, {})
    if split not in splits:
        there = ", ".join(f"{t}/{s}" for t, found in manifest["tasks"].items() for s in found)
        raise DataError(f"{root}/{MANIFEST}: has no {task}/{split}; there are {there}")
    try:
        images = tuple(f"{root}/{shard['file']}" for shard in manifest["images"]["shards"])
        files = [_on_disk(root, shard) for shard in splits[split]["shards"]]
        digests = tuple(shard["sha256"] for shard in splits[split]["shards"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{root}/{MANIFEST}: says not which files hold {task}/{split}; prepare the data again"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: the rows of {task}/{split} can't be read: {error}") from error
    if not files:
        return StoredSamples(Dataset.from_list([]), images, digests)
    try:
        # What it is given it takes for patterns.
        rows = Dataset.from_parquet([glob.escape(file) for file in files])
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(f"{root}: the rows of {task}/{split} can't be read: {error}") from error
    needed = FIRST_COLUMNS if manifest["format"] == 1 else ROW_SCHEMA.names
    if missing := [name for name in needed if name not in rows.column_names]:
        raise DataError(
            f"{root}: the rows of {task}/{split} have no {missing[0]}; prepare the data again"
        )
    return StoredSamples(rows, images, digests)


def require_usable_rows(
    rows: StoredSamples, root: str, manifest: Mapping[str, Any], rule: RowRule
) -> None:
    """Read all rows of a split, from its first on, and hold them to what JSON's rows are held to.

    Raises:
        DataError: One of them can't be used; names the file, the row in it and its id.
    """
    ids = Ids(rule.split)
    samples = iter(rows)
    for number in range(len(rows)):
        try:
            sample = next(samples)
            require_usable(sample, rule)
            ids.add(sample.id, number)
        except DataError as error:
            raise DataError(f"{_place(root, manifest, rule, number)}: {error}") from error
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{_place(root, manifest, rule, number)}: not as coin_prepare.py writes it "
                f"({error}); prepare the data again"
            ) from error


def _place(root: str, manifest: Mapping[str, Any], rule: RowRule, number: int) -> str:
    """The file that holds a split's row, and which of its rows it is."""
    for shard in manifest["tasks"][rule.task][rule.split]["shards"]:
        if number < shard["rows"]:
            return f"{root}/{shard['file']}, row {number}"
        number -= shard["rows"]
    return f"{root}, {rule.task}/{rule.split}"


def _on_disk(root: str, shard: Mapping[str, Any]) -> str:
    """A path of a shard: a remote one is copied and checked once, for all processes of a machine.

    `datasets` would copy it as well, but not where `HF_HUB_OFFLINE` is set: it takes any remote
    storage for the hub.
    """
    from datasets.config import DOWNLOADED_DATASETS_PATH
    from filelock import FileLock

    fs, path = filesystem(f"{root}/{shard['file']}")
    if is_local(fs):
        return str(path)
    copy = Path(DOWNLOADED_DATASETS_PATH) / f"{shard['sha256']}.parquet"
    with explained(copy, WRITTEN):
        copy.parent.mkdir(parents=True, exist_ok=True)
    with explained(copy, WRITTEN), FileLock(f"{copy}.lock"):
        if not copy.is_file():
            with whole(copy) as part:
                with explained(f"{root}/{shard['file']}", READ):
                    fs.get_file(path, str(part))
                with part.open("rb") as file:
                    if file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                        raise ValueError(f"{shard['file']} isn't what {MANIFEST} says (sha256)")
    return str(copy)


class StoredSamples(Sequence[Sample]):
    """Samples of a split in Arrow's memory-mapped files: a row is read when it is asked for.

    Any order costs the same, so that training may permute a whole epoch.

    Args:
        rows: A `datasets.Dataset` of `ROW_SCHEMA`, or of the first format's.
        images: URLs of the image shards that rows point into.
        shards: sha256 of the files that the rows are of.
        numbers: Of those files' rows, where these aren't all.
    """

    def __init__(
        self,
        rows: Any,
        images: tuple[str, ...],
        shards: tuple[str, ...],
        numbers: Sequence[int] | None = None,
    ) -> None:
        self._rows, self._images, self._shards = rows, images, shards
        self._numbers = range(len(rows)) if numbers is None else numbers

    @property
    def digest(self) -> str:
        """Of which rows these are, of which files: an image shard's name holds its own digest."""
        images = [Path(url).name for url in self._images]
        said = json.dumps([self._shards, images, [*self._numbers]])
        return sha256(said.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> StoredSamples: ...
    def __getitem__(self, at: int | slice) -> Sample | StoredSamples:
        if isinstance(at, slice):
            return self.select(range(len(self))[at])
        return self._sample(self._rows[range(len(self))[at]])

    def __iter__(self) -> Iterator[Sample]:
        for batch in self._rows.iter(1024):
            for values in zip(*batch.values(), strict=True):
                yield self._sample(dict(zip(batch, values, strict=True)))

    def ids(self) -> list[str]:
        """Of all samples, in order."""
        return list(self._rows["question_id"])

    def select(self, numbers: Sequence[int]) -> StoredSamples:
        """Some of the samples, in the order given."""
        own = [self._numbers[n] for n in numbers]
        return StoredSamples(self._rows.select(numbers), self._images, self._shards, own)

    def _sample(self, row: Mapping[str, Any]) -> Sample:
        size = row["size"]
        images = row["images"] if "images" in row else _first_image(row)
        return Sample(
            row["question_id"],
            row["text"],
            row["answer"],
            tuple(
                StoredPicture(self._images[at["shard"]], at["group"], at["row"], at["name"])
                for at in images
            ),
            (size[0], size[1]) if size else None,
            tuple(Turn(turn["text"], turn["answer"]) for turn in row["further"]),
            tuple(row.get("answers") or ()),
        )


def _first_image(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images of a row in the first format."""
    return [row["image"] | {"name": row["picture"]}] if row["image"] else []
