"""A folder on S3 as a copy on this machine: whole, verified, fetched once, whoever asks."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.flaky import Flaky
from support.paths import ROOT

from cmoe.common.remote.node_copy import NodeCopy, latest_copy
from cmoe.common.storage import StorageAwayError, StorageError, filesystem

FILES = {"a.json": b"{}", "b.bin": b"no", "c.json": b"x" * 1000}
LARGE = os.urandom(11 * 2**20)
PART = 5 * 2**20


def put(url: str, files: dict[str, bytes]) -> None:
    fs, root = filesystem(url)
    for name, content in files.items():
        fs.pipe_file(f"{root}/{name}", content)


def copy_of(url: str, cache: Path) -> NodeCopy:
    return NodeCopy(url, cache, lambda name: name.endswith(".json"))


def test_a_copy_has_what_is_wanted_and_is_read_once(
    bucket: str, wire: Flaky, tmp_path: Path
) -> None:
    put(bucket, {**FILES, "within/d.json": b"no"})
    for _ in range(2):
        copy = copy_of(f"{bucket}/", tmp_path)
        assert latest_copy(bucket, tmp_path) in (None, copy.folder)
        copy.fetch(copy.files, last=True)
        found = {file.name: file.read_bytes() for file in copy.folder.iterdir()}
        assert found == {name: FILES[name] for name in ("a.json", "c.json")}
        assert sorted(wire.read.values()) == [1, 1]
    assert latest_copy(bucket, tmp_path) == copy.folder


def test_another_state_is_another_copy(bucket: str, tmp_path: Path) -> None:
    put(bucket, FILES)
    first = copy_of(bucket, tmp_path)
    first.fetch(first.files, last=True)
    put(bucket, {"c.json": b"y" * 1000})
    second = copy_of(bucket, tmp_path)
    assert latest_copy(bucket, tmp_path) == first.folder
    second.fetch(second.files, last=True)
    assert latest_copy(bucket, tmp_path) == second.folder
    contents = [(each.folder / "c.json").read_bytes()[:1] for each in (first, second)]
    assert contents == [b"x", b"y"]
    (first.folder / "c.json").unlink()
    with pytest.raises(StorageAwayError, match="isn't what was listed"):
        first.fetch(first.files)
    assert not (first.folder / "c.json").exists()


@pytest.mark.parametrize("parts", [False, True])
def test_what_came_is_held_to_the_etag(
    bucket: str, wire: Flaky, tmp_path: Path, parts: bool
) -> None:
    fs, root = filesystem(bucket)
    if parts:
        fs.pipe_file(f"{root}/a.json", LARGE, chunksize=PART)
        tag = fs.info(f"{root}/a.json")["ETag"]
        pieces = [LARGE[i : i + PART] for i in range(0, len(LARGE), PART)]
        whole = hashlib.md5(b"".join(hashlib.md5(piece).digest() for piece in pieces)).hexdigest()
        assert tag == f'"{whole}-3"', "the published rule, and uploaded so"
    else:
        put(bucket, {"a.json": LARGE})
    copy = copy_of(bucket, tmp_path)
    wire.altered = 100
    with pytest.raises(StorageAwayError, match=r"a\.json: can't be read: what came isn't") as told:
        copy.fetch(copy.files)
    assert told.value.transient
    assert not any(copy.folder.glob("a.json*"))
    wire.altered = 1
    copy.fetch(copy.files)
    assert (copy.folder / "a.json").read_bytes() == LARGE


def test_what_a_killed_process_leaves_does_not_count(
    bucket: str, wire: Flaky, tmp_path: Path
) -> None:
    put(bucket, FILES)
    program = f"""
import os, signal
from pathlib import Path
from types import SimpleNamespace
from cmoe.common.remote.node_copy import NodeCopy

class Killed(NodeCopy):
    def _tag(self, file, name, listed):
        if name == "c.json":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._tag(file, name, listed)

copy = Killed({bucket!r}, Path({str(tmp_path)!r}), lambda name: name.endswith(".json"))
copy.fetch(copy.files, last=True)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert latest_copy(bucket, tmp_path) is None
    copy = copy_of(bucket, tmp_path)
    assert sorted(file.suffix for file in copy.folder.iterdir()) == [".json", ".tmp"]
    wire.read.clear()
    copy.fetch(copy.files)
    assert sum(wire.read.values()) == 1, "what was whole before is taken"
    assert {file.name for file in copy.folder.iterdir()} == {"a.json", "c.json"}


def test_too_little_room_is_told_before_anything_is_fetched(
    bucket: str, wire: Flaky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, FILES)
    copy = copy_of(bucket, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"0\.00 GiB left; free some space .* HF_HUB_CACHE"):
        copy.fetch(copy.files)
    assert not wire.read


def test_what_can_not_be_listed_says_why(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="has no bucket 'nowhere-at-all'"):
        copy_of("s3://nowhere-at-all/x", tmp_path)
    with pytest.raises(StorageError, match=r"there is none .*; correct the URL"):
        copy_of(f"{bucket}/nothing", tmp_path)
    with pytest.raises(StorageError, match="names no bucket"):
        copy_of("s3://", tmp_path)
