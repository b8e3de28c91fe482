"""A log on storage that is far away: what is lost, refused, or overtaken by another writer."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
from dataclasses import replace
from typing import Any

import pytest
from s3fs import S3FileSystem
from support.flaky import flaky
from support.logs import Place, assert_same, bits, patch_s3, primitive

from cmoe.common.storage import StorageError
from cmoe.store import files as store_files
from cmoe.store.log import Store, StoreError

# Two writers.


@pytest.mark.parametrize("turn", [0, 3])
@pytest.mark.parametrize(("task", "seed"), [("VQAv2", 2), ("VQAv2", 3), ("OCR-VQA", 3)])
def test_writer_overtaken_before_its_first_or_its_last_file(
    place: Place, monkeypatch: pytest.MonkeyPatch, turn: int, task: str, seed: int
) -> None:
    """Another writer commits the same task and tensors, other tensors, or another task."""
    place.create().append(primitive("GQA"))
    loser, winner = place.open(), place.open()
    create, count = store_files.DiskFolder.create_file, itertools.count()

    def overtaken(self: Any, name: str, data: bytes) -> bool:
        if next(count) == turn:
            winner.append(primitive(task, seed))
            files.update(place.files())
        return create(self, name, data)

    files: dict[str, bytes] = {}
    monkeypatch.setattr(store_files.DiskFolder, "create_file", overtaken)
    with pytest.raises(StoreError, match=rf"001\.json: index 1 is held by .*{task!r}"):
        loser.append(primitive("VQAv2", 2))
    assert files.items() <= place.files().items()
    assert len(loser) == 1
    with pytest.raises(StoreError, match="index 1 is held"):
        loser.append(primitive("Flickr"))
    store = place.open()
    store.verify()
    assert store.tasks == ("GQA", task)
    assert_same(store.read(1), primitive(task, seed))


def test_processes_that_race_for_every_index(local: Place) -> None:
    """On the disk alone: moto's own check and its write are two steps, unlike S3's."""
    rounds, fork = 15, multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(3), fork.SimpleQueue()
    local.create()

    def race(writer: int) -> None:
        won = []
        for turn in range(rounds):
            store = local.open()
            # Even turns are for one task with different tensors, odd ones for two tasks.
            task = f"turn-{turn}" if turn % 2 == 0 else f"turn-{turn}-of-{writer}"
            barrier.wait(timeout=30)
            with contextlib.suppress(StoreError):
                store.append(primitive(task, seed=writer))
                won.append(turn)
            barrier.wait(timeout=30)
        results.put((writer, won))

    writers = [fork.Process(target=race, args=(writer,), daemon=True) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
        assert writer.exitcode == 0
    won = dict(results.get() for _ in writers)
    assert sorted(turn for turns in won.values() for turn in turns) == list(range(rounds))
    store = local.open()
    store.verify()
    for writer, turns in won.items():
        for turn in turns:
            assert bits(store.read(turn).routers["layers.0"]) == bits(
                primitive("any", seed=writer).routers["layers.0"]
            )


# What storage answers when it is far away.


def test_s3_answer_that_got_lost_is_not_another_writer(
    s3: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3fs repeats a request whose answer it never saw; its own object then refuses it."""
    call = S3FileSystem._call_s3

    async def twice(self: S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "put_object":
            await call(self, method, *args, **kwargs)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", twice)
    s3.create().append(primitive("GQA"))
    s3.open().verify()


def test_s3_refusal_without_the_conditions_name(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    call = S3FileSystem._call_s3

    async def vague(self: S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await call(self, method, *args, **kwargs)
        except FileExistsError:
            raise OSError(errno.EIO, "ConditionalRequestConflict") from None

    monkeypatch.setattr(S3FileSystem, "_call_s3", vague)
    first, second = s3.create(), s3.open()
    first.append(primitive("GQA"))
    with pytest.raises(StoreError, match="index 0 is held by another writer's task 'GQA'"):
        second.append(primitive("VQAv2"))


def test_a_server_that_overwrites_is_refused_before_anything_is_written(
    s3: Place, s3_server: Any
) -> None:
    with flaky(s3_server.endpoint) as proxy:
        proxy.unconditional = True
        there = replace(s3, options={**s3.options, "endpoint_url": proxy.url})
        with pytest.raises(StorageError, match=r"ignores If-None-Match.*needed is an S3 server"):
            there.create()
        assert s3.files() == {}
        s3.create().append(primitive("GQA"))
        before = s3.files()
        writer = there.open()
        assert_same(writer.read(0), primitive("GQA"))
        with pytest.raises(StorageError, match=r"ignores If-None-Match"):
            writer.append(primitive("VQAv2"))
        assert s3.files() == before
        proxy.unconditional = False
        writer.append(primitive("VQAv2"))
    s3.open().verify()


def test_a_writer_asks_once_whether_its_files_are_safe(
    s3: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3.create()
    calls: list[str] = []
    patch_s3(monkeypatch, calls.append)
    store.append(primitive("GQA"))
    assert calls == ["put_object"] * 4
    calls.clear()
    other = s3.open()
    other.append(primitive("VQAv2"))
    other.append(primitive("OCR-VQA"))
    assert calls.count("delete_object") == 1


def test_a_missing_bucket_is_no_missing_store(s3: Place) -> None:
    with pytest.raises(StoreError, match="there is no store here; create one first"):
        s3.open()
    for nowhere in ("s3://nowhere-at-all/store", "s3://"):
        with pytest.raises(StorageError, match=r"no bucket") as raised:
            Store.open(nowhere, **s3.options)
        assert not isinstance(raised.value, StoreError)


def test_s3_failure_is_no_refusal(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3.create()

    def deny(method: str) -> None:
        if method == "put_object":
            raise PermissionError("Access Denied")

    with monkeypatch.context() as patch:
        patch_s3(patch, deny)
        with pytest.raises(StorageError, match=r"no permission, or is wrong \(Access Denied\)"):
            store.append(primitive("GQA"))
    store.append(primitive("GQA"))


def test_nfs_answer_that_got_lost_is_not_another_writer(
    local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    local.create().append(primitive("GQA"))
    local.open().verify()


def test_file_system_without_hard_links(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"no hard links here"):
        local.create()
    assert local.files() == {}
