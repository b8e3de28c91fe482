"""Parquet holds what CoIN's files say, whatever happened on the way; what is wrong is named."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import JOBS
from support.prepared import content, one_task, prepared

from cmoe.common.errors import DataError
from cmoe.common.group import Group
from cmoe.data import prepare as preparing
from cmoe.data import survey as surveying
from cmoe.data.batches import slices
from cmoe.data.coin import read_tasks
from cmoe.data.prepare import plan, prepare
from cmoe.data.samples import StoredPicture
from cmoe.data.settings import TASKS, DataConfig
from cmoe.data.shards import find_root, read_manifest, read_rows
from cmoe.data.survey import Preparation, Scan, Survey, survey

JOB = JOBS / "coin_prepare.py"


def test_stored_samples_are_those_of_the_files(root: Path, shards: Path) -> None:
    for selection in (0.0, 0.25):
        config = {"selection": selection, "train_samples": 15}
        files = read_tasks(DataConfig(root=str(root), **config), seed=3)
        stored = read_tasks(DataConfig(root=str(shards), **config), seed=3)
        for mine, theirs in zip(stored, files, strict=True):
            assert mine.name == theirs.name
            for got, wanted in ((mine.train, theirs.train), (mine.test, theirs.test)):
                assert [content(s) for s in got] == [content(s) for s in wanted]
        assert selection or any(s.further for s in stored[3].train)
    train = stored[3].train
    assert [s.id for s in train[2:5]] == [s.id for s in files[3].train[2:5]]
    assert train[-1].id == files[3].train[-1].id


def test_a_picture_is_stored_once_with_its_own_bytes(root: Path, shards: Path) -> None:
    manifest = read_manifest(str(shards))
    assert manifest is not None
    kept = [
        (digest, data)
        for shard in manifest["images"]["shards"]
        for digest, data in zip(
            *pq.read_table(shards / shard["file"]).to_pydict().values(), strict=True
        )
    ]
    digests = [digest for digest, _ in kept]
    assert digests == [hashlib.sha256(data).hexdigest() for _, data in kept]
    files = {hashlib.sha256(f.read_bytes()).hexdigest() for f in root.rglob("*.[jp][pn]g")}
    assert len(set(digests)) == len(digests) == manifest["images"]["pictures"]
    assert set(digests) == files
    task = read_tasks(DataConfig(root=str(shards), tasks=("GQA",)), seed=0)[0]
    first, second = task.train[0].images[0], task.train[1].images[0]
    assert isinstance(first, StoredPicture)
    assert isinstance(second, StoredPicture)
    assert first.name != second.name
    assert (first.shard, first.group, first.row) == (second.shard, second.group, second.row)


def test_the_manifest_counts_and_its_digests_are_the_files_own(root: Path, shards: Path) -> None:
    manifest = read_manifest(str(shards))
    assert manifest is not None
    assert list(manifest["tasks"]) == list(TASKS)
    listed = list(manifest["images"]["shards"])
    for task, splits in manifest["tasks"].items():
        for split, found in splits.items():
            name = {"train": "train"}.get(split) or (
                "val" if (root / f"Instructions_Original/{task}/val.json").exists() else "test"
            )
            rows = json.loads((root / f"Instructions_Original/{task}/{name}.json").read_text())
            said = [r["answer"] if "answer" in r else r["conversations"][1]["value"] for r in rows]
            assert found["rows"] == len(rows)
            assert found["answers"]["distinct"] == len(set(said))
            assert found["answers"]["longest"] == max(map(len, said))
            assert found["answers"]["most_common"][said[0]] == said.count(said[0])
            listed += found["shards"]
    for shard in listed:
        data = (shards / shard["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
    on_disk = {str(f.relative_to(shards)) for f in shards.rglob("*") if f.is_file()}
    assert on_disk == {"manifest.json", *(shard["file"] for shard in listed)}


@pytest.mark.parametrize("samples", range(41))
def test_workers_share_every_sample_once_and_in_order(
    tmp_path: Path, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "SHARD_ROWS", 7)
    manifest = prepared(one_task(tmp_path / "coin", samples), str(tmp_path / "out"), ("GQA",))
    train = manifest["tasks"]["GQA"]["train"]
    if not samples:  # a split can't be empty in CoIN's files, and yet its shards could
        train["shards"] = []
    else:
        assert [s["rows"] for s in train["shards"]] == [len(r) for r in slices(samples, 7)]
    rows = read_rows(str(tmp_path / "out"), manifest, "GQA", "train")
    wanted = [str(i) for i in range(samples)]
    assert [s.id for s in rows] == [rows[i].id for i in range(len(rows))] == wanted
    batches = slices(len(rows), 4)
    for workers in range(1, 10):
        for equal in (False, True):
            shares = [
                Group(rank=rank, workers=workers).share(batches, equal=equal)
                for rank in range(workers)
            ]
            merged = {n: batch for share in shares for n, batch in share}
            assert [rows[i].id for n in sorted(merged) for i in merged[n]] == wanted
            if equal:
                assert len({len(share) for share in shares}) == 1
            else:
                assert sum(map(len, shares)) == len(batches), "none twice"


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), max_size=60),
    st.integers(1, 60),
    st.integers(1, 200),
)
def test_a_plan_places_every_picture_within_its_bounds(
    drawn: list[tuple[int, int]], group_bytes: int, shard_bytes: int
) -> None:
    sizes: dict[int, int] = {}
    pictures = {
        f"{i}.png": Scan(f"digest {same}", sizes.setdefault(same, size), 1, 1)
        for i, (same, size) in enumerate(drawn)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "GROUP_BYTES", group_bytes)
        patch.setattr(preparing, "SHARD_BYTES", shard_bytes)
        shards, places = plan(pictures)
    stored = [entry for shard in shards for group in shard for entry in group]
    first = {one.sha256: name for name, one in reversed(pictures.items())}
    assert [d for _, d in stored] == list(dict.fromkeys(p.sha256 for p in pictures.values()))
    assert all(name == first[digest] for name, digest in stored)
    for name, one in pictures.items():
        at = places[name]
        assert shards[at.shard][at.group][at.row][1] == one.sha256
    for shard in shards:
        sums = [sum(pictures[name].bytes for name, _ in group) for group in shard]
        assert all(
            size <= group_bytes or len(group) == 1 for size, group in zip(sums, shard, strict=True)
        )
        assert sum(sums[:-1]) <= shard_bytes, "a shard ends with the group that fills it"


# Interrupted, elsewhere, again


def test_interrupted_anywhere_it_ends_with_the_same_files(
    root: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {f.relative_to(shards): f.read_bytes() for f in shards.rglob("*") if f.is_file()}
    out = tmp_path / "coin"
    job = Preparation(root, ".", TASKS, str(out))

    class CutError(Exception):
        pass

    for step in range(1, 12):
        left = step

        def publish(real: Any, content: Any, url: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise CutError
            real(content, url)

        with monkeypatch.context() as patch:
            patch.setattr(surveying, "CHUNK", 40)
            for module in (preparing, surveying):
                patch.setattr(module, "publish", partial(publish, module.publish))
            with pytest.raises(CutError):
                prepare(job, survey(job, map, keep=True), map)
        assert read_manifest(str(out)) is None
    prepare(job, survey(job, map, keep=True), map)
    assert {f.relative_to(out): f.read_bytes() for f in out.rglob("*") if f.is_file()} == wanted


@pytest.mark.ray
def test_killed_and_started_again_it_ends_with_the_same_digests(
    root: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "coin"
    command = [sys.executable, str(JOB), "--root", str(root), "--out", str(out)]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.rglob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    job.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "manifest.json").read_bytes() == (shards / "manifest.json").read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "prepared already" in again.stdout


def test_s3_holds_and_gives_the_same(
    root: Path, shards: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # which is about the hub alone
    manifest = prepared(root, bucket)
    assert manifest == read_manifest(bucket) == read_manifest(str(shards))
    there = read_tasks(DataConfig(root=bucket), seed=0)
    here = read_tasks(DataConfig(root=str(shards)), seed=0)
    for mine, theirs in zip(there, here, strict=True):
        for got, wanted in ((mine.train, theirs.train), (mine.test, theirs.test)):
            assert [content(s) for s in got] == [content(s) for s in wanted]
    (shard,) = manifest["tasks"]["GQA"]["test"]["shards"]
    shard["sha256"] = "0" * 64
    with pytest.raises(
        DataError, match=r"rows of GQA/test can't be read.*isn't what manifest.json"
    ):
        read_rows(bucket, manifest, "GQA", "test")


def test_a_data_set_of_the_hub_is_taken_from_its_cache(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "hub" / "datasets--me--coin"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "v1").write_text("a" * 40)
    shutil.copytree(shards, cache / "snapshots" / ("a" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (task,) = read_tasks(DataConfig(root="hf://datasets/me/coin@v1", tasks=("GQA",)), seed=0)
    assert len(task.train) == 20
    with pytest.raises(DataError, match="hf download --repo-type dataset me/other --revision v2"):
        find_root("hf://datasets/me/other@v2")


def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for text, cause in (("{", "not a manifest"), ('{"format": 99}', "format 99"), ("[]", "not a")):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=cause):
            read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").unlink()
    assert read_manifest(str(tmp_path)) is None
    assert Survey().rows == 0


def test_missing_tasks_and_shards_are_named(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "coin"
    shutil.copytree(shards, copy)
    manifest = read_manifest(str(copy))
    assert manifest is not None
    with pytest.raises(DataError, match=r"has no Else/train; there are ScienceQA/train"):
        read_rows(str(copy), manifest, "Else", "train")
    (copy / manifest["tasks"]["GQA"]["train"]["shards"][0]["file"]).unlink()
    with pytest.raises(DataError, match=r"rows of GQA/train can't be read"):
        read_rows(str(copy), manifest, "GQA", "train")
