"""Where a base's files come from: a folder, the hub by its cache, or a mirror of them on S3.

A mirror has the files of a model on the hub, in one folder: `config.json`, `*.safetensors`, the
processor's. transformers reads its copy on this machine, in the hub's own cache folder. Weights are
copied where they are needed alone; a plan or a driver asks for the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from cmoe.common.errors import KnownError
from cmoe.common.remote.node_copy import NodeCopy, latest_copy
from cmoe.common.storage import S3, StorageError, require_url

CONFIG, WEIGHTS = "config.json", "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
SAFETENSORS = ".safetensors"
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""What a base needs beside its weights. Neither code nor a pickle ends so."""

_mirrors: dict[str, Mirror] = {}  # by URL: a process takes one state of each


class MissingModelError(KnownError, OSError):
    """A base that isn't there; the message says where it was looked for and how to fetch it."""


def is_mirror(name: str | os.PathLike[str]) -> bool:
    """Whether a base's name is of a mirror on S3."""
    return os.fspath(name).startswith(S3)


def local_base(name: str, *, weights: bool = False) -> str:
    """What transformers loads for a base's name: of a mirror its copy here, which is made first.

    With `HF_HUB_OFFLINE=1` it is the copy that was whole at last, and nobody is asked.

    Args:
        name: Of the base.
        weights: Whether they are needed.

    Raises:
        MissingModelError: The mirror lacks a file.
        StorageError: It can't be read, or not be kept here.
    """
    if not is_mirror(name):
        return name
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if constants.HF_HUB_OFFLINE:
        folder = latest_copy(name, cache)
        if folder is None:
            raise MissingModelError(
                f"{name}: no whole copy of it is in {cache}, and HF_HUB_OFFLINE is set; without "
                "it, `cmoe fetch` makes one"
            )
        return str(folder)
    return str(_mirror(name).fetch(weights=weights))


def fetched(name: str, revision: str | None) -> Path:
    """The folder of a base that is on this machine then, with its weights; errors as of
    `local_base`, or huggingface_hub's."""
    from huggingface_hub import snapshot_download

    folder = Path(local_base(name, weights=True))
    if folder.is_dir():
        return folder
    texts = [f"*{end}" for end in TEXTS]
    folder = Path(snapshot_download(name, revision=revision, allow_patterns=texts))
    weights = weight_files([file.name for file in folder.iterdir()], folder)
    return Path(snapshot_download(name, revision=revision, allow_patterns=weights))


def lacking_weights(name: str, revision: str | None) -> list[str]:
    """Files with weights that a base lacks, as far as can be told without asking the hub.

    Raises:
        MissingModelError: The folder has an index that is damaged, or a mirror lacks them.
        StorageError: As of `local_base`.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if is_mirror(name) and not constants.HF_HUB_OFFLINE:
        _mirror(name).weights()
        return []
    folder = Path(local_base(name))
    if not folder.is_dir() and not constants.HF_HUB_OFFLINE:
        return []

    def there(file: str) -> Path | None:
        if folder.is_dir():
            return folder / file if (folder / file).is_file() else None
        cached = try_to_load_from_cache(name, file, revision=revision)
        return Path(cached) if isinstance(cached, str) else None

    index = there(WEIGHTS_INDEX)
    wanted = [WEIGHTS] if index is None else weight_files([WEIGHTS_INDEX], index.parent)
    return [file for file in wanted if there(file) is None]


def mirrored_weights(name: str) -> tuple[int, bool]:
    """Bytes of a mirror's weights, and whether all of them are on this machine; errors as of
    `local_base`."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        files = Path(local_base(name)).glob(f"*{SAFETENSORS}")
        return sum(file.stat().st_size for file in files), True
    mirror = _mirror(name)
    weights = mirror.weights()
    return sum(mirror.copy.files[file].size for file in weights), mirror.copy.has(weights)


def _mirror(url: str) -> Mirror:
    from huggingface_hub import constants

    if (url := require_url(url).rstrip("/")) not in _mirrors:
        _mirrors[url] = Mirror(url, Path(constants.HF_HUB_CACHE))
    return _mirrors[url]


class Mirror:
    """A base on S3, and its copy on this machine.

    Raises:
        MissingModelError: It has no `config.json`.
        StorageError: It can't be read.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self.copy = NodeCopy(url, cache, lambda name: name.endswith((*TEXTS, SAFETENSORS)))
        self._require(CONFIG)

    def fetch(self, *, weights: bool) -> Path:
        """Bring what isn't here yet; the folder of the copy. Errors as of `local_base`."""
        texts = [name for name in self.copy.files if name.endswith(TEXTS)]
        try:
            self.copy.fetch(texts)
            if weights:
                self.copy.fetch((*texts, *self.weights()), last=True)
        except StorageError:
            _mirrors.pop(self.copy.url, None)  # it may have been replaced: look again next time
            raise
        return self.copy.folder

    def weights(self) -> Collection[str]:
        """Names of the files with weights that transformers loads; errors as of `local_base`."""
        files = self.copy.files
        if WEIGHTS not in files and WEIGHTS_INDEX in files:
            self.copy.fetch([WEIGHTS_INDEX])
        found = weight_files(files, self.copy.folder)
        self._require(*found)
        return found

    def _require(self, *names: str) -> None:
        if lacking := [name for name in names if name not in self.copy.files]:
            there = ", ".join(self.copy.files) or "none that a base has"
            raise MissingModelError(
                f"{self.copy.url}: {', '.join(lacking)} is missing; a base's files are those of a "
                f"model on the hub: config.json, *.safetensors and the processor's. There: {there}"
            )


def weight_files(names: Iterable[str], folder: Path) -> list[str]:
    """The files with weights that transformers loads of those in a folder: one, or an index's.

    Raises:
        MissingModelError: The index is damaged.
    """
    if WEIGHTS in (names := set(names)) or WEIGHTS_INDEX not in names:
        return [WEIGHTS]
    try:
        index = json.loads((folder / WEIGHTS_INDEX).read_bytes())
        return sorted({*index["weight_map"].values()})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise MissingModelError(f"{folder / WEIGHTS_INDEX}: names no files ({error!r})") from error
