"""A log in two places, and the primitives that its tests append."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from fsspec.core import url_to_fs
from s3fs import S3FileSystem
from support.hub import HubServer

from cmoe.modeling.primitive import Primitive
from cmoe.store.log import BaseId, Store, StoreError

BASE = BaseId(name="mini-llava", revision="v1", digest="b" * 64)


SETTINGS = {"top_k": 2, "locator": {"layer": 1, "pooling": "mean"}}


CONFIG = {"seed": 0, "tasks": ["GQA", "VQAv2"], "path": None}


@dataclass(frozen=True)
class Place:
    """Where a store is put, with a way to its files that isn't the store's own."""

    url: str
    options: dict[str, Any]

    def create(self) -> Store:
        return Store.create(self.url, base=BASE, settings=SETTINGS, config=CONFIG, **self.options)

    def open(self) -> Store:
        return Store.open(self.url, **self.options)

    def _fs(self) -> tuple[Any, str]:
        return url_to_fs(self.url, use_listings_cache=False, **self.options)

    def files(self) -> dict[str, bytes]:
        fs, root = self._fs()
        paths = fs.find(root) if fs.exists(root) else []
        return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in paths}

    def write(self, name: str, data: bytes) -> None:
        fs, root = self._fs()
        if "file" in fs.protocol:
            fs.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{root}/{name}", data)

    def remove(self, name: str) -> None:
        fs, root = self._fs()
        fs.rm_file(f"{root}/{name}")


@dataclass(frozen=True)
class HubPlace(Place):
    """A repository of the stand-in of the hub."""

    server: HubServer

    @property
    def repo(self) -> str:
        return self.url.removeprefix("hf://")

    def files(self) -> dict[str, bytes]:
        return self.server.files(self.repo) if self.repo in self.server.repos else {}

    def write(self, name: str, data: bytes) -> None:
        self.server.put(self.repo, {name: data})

    def remove(self, name: str) -> None:
        self.server.put(self.repo, {name: None})


def primitive(task: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Primitive:
    rng = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng).to(dtype)

    return Primitive(
        task=task,
        rank=2,
        lora_alpha=4.0,
        experts={"layers.0.up_proj.A": random(1, 2, 3), "layers.0.up_proj.B": random(1, 5, 2)},
        routers={"layers.0": random(1, 3)},
        locator={"mean": random(3), "count": torch.tensor(7)},
        decision={"threshold": 0.25, "layers": [0], "scores": {"0": 0.1 + 0.2}},
    )


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(got: Primitive, want: Primitive) -> None:
    assert (got.task, got.rank, got.lora_alpha) == (want.task, want.rank, want.lora_alpha)
    assert got.decision == want.decision
    for part, tensors in want.parts().items():
        read = got.parts()[part]
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
            assert bits(read[name]) == bits(tensor)


def resealed(data: bytes, **changes: Any) -> bytes:
    """A record or header with `changes` and a valid digest of its own, as the layout defines it."""
    fields = {**json.loads(data), **changes}
    del fields["digest"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    fields["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def patch_s3(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], object]) -> None:
    """Run `before` with its method's name before every request to S3."""
    call = S3FileSystem._call_s3

    async def patched(self: S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
        before(method)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", patched)


PART = 5 * 2**20  # the least that S3 takes for a part, but the last


class KilledError(Exception):
    """The process ends here."""


def in_small_parts(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The same place, where files beyond `PART` are uploaded in parts.

    s3fs splits what is 100 MiB and more; smaller parts take the same way in less time.
    """
    monkeypatch.setattr(S3FileSystem._pipe_file, "__defaults__", (PART, None, "overwrite"))
    return replace(place, options={**place.options, "default_block_size": PART})


def large_primitive() -> Primitive:
    """One whose experts are three parts of `in_small_parts`."""
    weights = torch.arange(3 * 2**20, dtype=torch.float32)
    return replace(primitive("GQA"), experts={"layers.0.up_proj.A": weights})


def killed_in_an_upload(
    store: Store, primitive: Primitive, monkeypatch: pytest.MonkeyPatch, *, aborts: bool = False
) -> None:
    """Let a writer die at the second part of an upload.

    Args:
        store: Where it appends.
        primitive: Of more than one part.
        monkeypatch: Of the test.
        aborts: Whether it has time to abort the upload.
    """
    methods: list[str] = []

    def crash(method: str) -> None:
        methods.append(method)
        if methods.count("upload_part") == 2:
            raise KilledError

    async def no_abort(*_: object, **__: object) -> None:
        """Who is dead aborts nothing."""

    with monkeypatch.context() as patch:
        patch_s3(patch, crash)
        if not aborts:
            patch.setattr(S3FileSystem, "_abort_mpu", no_abort)
        with pytest.raises(KilledError):
            store.append(primitive)


def two_in(place: Place) -> Place:
    store = place.create()
    store.append(primitive("GQA", seed=1))
    store.append(primitive("VQAv2", seed=2))
    return place


def refusal(place: Place) -> str:
    with pytest.raises(StoreError) as refused:
        place.open().verify()
    return str(refused.value)
