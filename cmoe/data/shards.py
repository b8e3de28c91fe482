"""CoIN as Parquet: rows that point to pictures, each picture stored once.

<root>/manifest.json                       what there is; written last
<root>/rows/<Task>-<split>-<number>-<digest>.parquet
<root>/images/<digest>.parquet             in row groups of about a megabyte, bytes as they were

A root is a folder, a URL that fsspec knows (`s3://bucket/prefix`), or a data set on the Hugging
Face hub, `hf://datasets/<owner>/<name>[@revision]`, which is taken from the hub's cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from cmoe.data.samples import DataError, Sample, StoredPicture, Turn
from cmoe.files import whole
from cmoe.storage import READ, WRITTEN, exists, explained, filesystem

MANIFEST, ROWS, IMAGES = "manifest.json", "rows", "images"
FORMAT = 1
HUB = "hf://datasets/"

ROW_SCHEMA = pa.schema(
    {
        "question_id": pa.string(),
        "text": pa.string(),
        "answer": pa.string(),
        "further": pa.list_(pa.struct({"text": pa.string(), "answer": pa.string()})),
        "image": pa.struct({"shard": pa.int32(), "group": pa.int32(), "row": pa.int32()}),
        "picture": pa.string(),
        "size": pa.list_(pa.int32()),
    }
)
"""A question. `image` says where its picture lies, `picture` what CoIN calls it."""

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
    try:
        with explained(f"{root}/{MANIFEST}", READ):
            data = fs.cat_file(f"{path}/{MANIFEST}")
        manifest: dict[str, Any] = json.loads(data)
        known = manifest["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root}/{MANIFEST}: not a manifest: {error!r}") from error
    if not known:
        raise DataError(
            f"{root}/{MANIFEST}: format {manifest['format']!r}, this version reads {FORMAT}; "
            "prepare the data again"
        )
    return manifest


def read_rows(root: str, manifest: Mapping[str, Any], task: str, split: str) -> StoredSamples:
    """All samples of a split, read from the disk as they are asked for.

    Raises:
        DataError: The root has no such task or split, or a shard of it is missing.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    splits = manifest["tasks"].get(task, {})
    if split not in splits:
        there = ", ".join(f"{t}/{s}" for t, found in manifest["tasks"].items() for s in found)
        raise DataError(f"{root}/{MANIFEST}: has no {task}/{split}; there are {there}")
    images = tuple(f"{root}/{shard['file']}" for shard in manifest["images"]["shards"])
    shards = splits[split]["shards"]
    if not shards:
        return StoredSamples(Dataset.from_list([]), images)
    try:
        rows = Dataset.from_parquet([_on_disk(root, shard) for shard in shards])
    except (OSError, ValueError) as error:
        raise DataError(f"{root}: the rows of {task}/{split} can't be read: {error}") from error
    return StoredSamples(rows, images)


def _on_disk(root: str, shard: Mapping[str, Any]) -> str:
    """A path of a shard: a remote one is copied and checked once, for all processes of a machine.

    `datasets` would copy it as well, but not where `HF_HUB_OFFLINE` is set: it takes any remote
    storage for the hub.
    """
    from datasets.config import DOWNLOADED_DATASETS_PATH
    from filelock import FileLock

    fs, path = filesystem(f"{root}/{shard['file']}")
    if "file" in fs.protocol:
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
        rows: A `datasets.Dataset` of `ROW_SCHEMA`.
        images: URLs of the image shards that rows point into.
    """

    def __init__(self, rows: Any, images: tuple[str, ...]) -> None:
        self._rows, self._images = rows, images

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
            columns = [batch[name] for name in ROW_SCHEMA.names]
            for values in zip(*columns, strict=True):
                yield self._sample(dict(zip(ROW_SCHEMA.names, values, strict=True)))

    def select(self, numbers: Sequence[int]) -> StoredSamples:
        """Some of the samples, in the order given."""
        return StoredSamples(self._rows.select(numbers), self._images)

    def _sample(self, row: Mapping[str, Any]) -> Sample:
        at, size = row["image"], row["size"]
        return Sample(
            row["question_id"],
            row["text"],
            row["answer"],
            at and StoredPicture(self._images[at["shard"]], at["group"], at["row"], row["picture"]),
            (size[0], size[1]) if size else None,
            tuple(Turn(turn["text"], turn["answer"]) for turn in row["further"]),
        )
