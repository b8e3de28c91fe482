"""Parquet holds what CoIN's files say, whatever happened on the way; what is wrong is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.paths import JOBS
from support.picture_files import SIGNATURE, chunk, header, png

from cmoe.common.errors import DataError
from cmoe.common.group import Group
from cmoe.data import prepare as preparing
from cmoe.data import survey as surveying
from cmoe.data.batches import slices
from cmoe.data.coin import read_tasks
from cmoe.data.image_limits import ImageLimits
from cmoe.data.prepare import plan, prepare
from cmoe.data.samples import Sample, StoredPicture
from cmoe.data.settings import TASKS, DataConfig
from cmoe.data.shards import find_root, read_manifest, read_rows
from cmoe.data.survey import Preparation, Scan, Survey, survey, with_box
from cmoe.mini.tasks import write_mini_coin

JOB = JOBS / "coin_prepare.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini CoIN, with one picture under a second name."""
    root = tmp_path_factory.mktemp("coin")
    write_mini_coin(root, train=20, test=6)
    file = root / "Instructions_Original" / "GQA" / "train.json"
    rows = json.loads(file.read_text())
    shutil.copy(root / rows[0]["image"], root / "copy.png")
    (root / rows[1]["image"]).unlink()
    rows[1]["image"] = "copy.png"
    rows[2]["conversations"] += [
        {"from": "human", "value": "And now?"},
        {"from": "gpt", "value": "no"},
    ]
    file.write_text(json.dumps(rows))
    return root


def prepared(root: Path, out: str, tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    job = Preparation(root, ".", tasks, out)
    found = survey(job, map, keep=True)
    assert not found.problems
    return prepare(job, found, map)


@pytest.fixture(scope="module")
def shards(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "coin"
    prepared(root, str(out))
    return out


def content(sample: Sample) -> tuple[Any, ...]:
    """What a sample says, wherever it is kept."""
    picture = None
    if sample.image is not None:
        with sample.image.open("rb") as file:
            picture = file.read()
    return sample.id, sample.text, sample.answer, picture, sample.size, sample.further


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
    first, second = task.train[0].image, task.train[1].image
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


def one_task(root: Path, train: int) -> Path:
    """A root with one task of text alone."""
    folder = root / "Instructions_Original" / "GQA"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"question_id": i, "text": f"{i}?", "answer": str(i)} for i in range(max(train, 1))]
    for name in ("train", "test"):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return root


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


# What is wrong


def spoiled(root: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy with one defect of each kind, and what each must be called."""
    copy = tmp_path / "coin"
    shutil.copytree(root, copy)
    expected = []

    def change(task: str, name: str, number: int, spoil: Callable[[Any], Any]) -> str:
        file = copy / "Instructions_Original" / task / name
        rows = json.loads(file.read_text())
        rows[number] = spoil(rows[number])
        file.write_text(json.dumps(rows))
        return f"{file}, row {number}: "

    def name_of(task: str, name: str, number: int) -> Path:
        file = copy / "Instructions_Original" / task / name
        return copy / json.loads(file.read_text())[number]["image"]

    def boxed(box: str) -> Callable[[Any], Any]:
        return lambda row: row | {"answer": box, "answer_bbox": box}

    at = change("GQA", "train.json", 4, lambda r: r | {"image": "gone.png"})
    expected.append(f"{at}picture {copy}/gone.png is missing")
    broken = name_of("VQAv2", "train.json", 5)
    broken.write_bytes(broken.read_bytes()[:60])
    where = copy / "Instructions_Original/VQAv2/train.json"
    expected.append(f"{where}, row 5: picture {broken} can't be decoded")
    text = name_of("OCRVQA", "test.json", 2)
    text.write_text("no picture")
    where = copy / "Instructions_Original/OCRVQA/test.json"
    expected.append(f"{where}, row 2: picture {text} can't be decoded")
    expected.append(change("VizWiz", "train.json", 0, lambda _: {"a": 1}) + "neither id nor")
    ids = json.loads((copy / "Instructions_Original/ImageNet/test.json").read_text())
    at = change("ImageNet", "test.json", 3, lambda r: r | {"question_id": ids[1]["question_id"]})
    expected.append(f"{at}id {str(ids[1]['question_id'])!r} is row 1's already")
    at = change("TextVQA", "val.json", 1, lambda r: r | {"answer": " "})
    expected.append(f"{at}question and answer must be text, the answer not empty")
    at = change("Grounding", "test.json", 1, boxed("[0.2, 0.1, 1.4, 0.5]"))
    expected.append(f"{at}box [0.2, 0.1, 1.4, 0.5] leaves its picture")
    at = change("Grounding", "test.json", 4, boxed("[0.6, 0.1, 0.4, 0.5]"))
    expected.append(f"{at}box [0.6, 0.1, 0.4, 0.5] leaves its picture")
    (copy / "Instructions_Original/ScienceQA/train.json").write_text("[{")
    expected.append(f"{copy}/Instructions_Original/ScienceQA/train.json: not JSON")
    return copy, expected


def test_a_dry_run_names_every_problem_at_once_and_writes_nothing(
    root: Path, tmp_path: Path
) -> None:
    copy, expected = spoiled(root, tmp_path)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    command = [sys.executable, str(JOB), "--root", str(copy)]
    done = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *problems, summary = done.stdout.splitlines()
    for start in expected:
        assert [p for p in problems if p.startswith(start)], start
    assert len(problems) == len(expected)
    assert f"{len(expected)} problems" in summary
    out = str(tmp_path / "out")
    refused = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stdout == done.stdout
    assert not list((tmp_path / "out").glob("*/*.parquet"))
    assert read_manifest(out) is None
    assert before.items() <= {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}.items()


@pytest.mark.parametrize(
    ("answer", "size", "wrong"),
    [
        ("[0.00, 0.52, 0.05, 1.00]", None, False),
        ("[0, 0, 640, 480]", (640, 480), False),
        ("[0, 0, 640, 481]", (640, 480), True),
        ("[0, 0, 32, 24]", None, False),  # the picture's own size
        ("[0, 0, 33, 24]", None, True),
        ("[-0.1, 0, 0.5, 0.5]", None, True),
        ("0.1, 0.2, 0.3, 0.1", None, True),
        ("a red cup, 1.2.3", None, True),  # no box
        ("[0.1, 0.2, 0.3]", None, True),
    ],
)
def test_a_box_stays_in_its_picture(answer: str, size: Any, wrong: bool) -> None:
    sample, picture = Sample("1", "Where?", answer, size=size), Scan("", 1, 32, 24)
    if not wrong:
        boxed = with_box(sample, picture)
        assert boxed.size == size or (answer == "[0, 0, 32, 24]" and boxed.size == (32, 24))
        return
    with pytest.raises(DataError, match=r"leaves its picture|must be a box of four numbers"):
        with_box(sample, picture)


def test_what_is_mended_is_seen_as_mended(root: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "coin", str(tmp_path / "out")
    shutil.copytree(root, copy)
    picture = next(copy.rglob("*.[jp][pn]g"))
    whole = picture.read_bytes()
    picture.write_bytes(whole[:50])
    job = Preparation(copy, ".", TASKS, out)
    assert survey(job, map, keep=True).problems
    picture.write_bytes(whole)
    assert not survey(job, map, keep=True).problems


def odd_pictures(folder: Path) -> dict[str, str]:
    """Files that no picture can be read from, and what is said of each."""
    image = Image.effect_noise((40, 40), 60).convert("RGB")

    def written(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)

    for name, kind, cut in (("a.tif", "TIFF", 60), ("a.ppm", "PPM", 30), ("a.dds", "DDS", 140)):
        image.save(folder / name, kind)
        written(name, (folder / name).read_bytes()[:cut])
    image.save(folder / "a.eps", "EPS")
    image.save(folder / "photo.jpg", "JPEG", progressive=True)
    written("photo.jpg", (folder / "photo.jpg").read_bytes()[:-300])
    written("chunk.png", png([bytes(6)], 2, chunk(b"pHYs", b"\1")))
    written("profile.png", png([bytes(6)], 2, chunk(b"iCCP", b"a\0\1broken")))
    image.save(folder / "pixels.png")
    written("pixels.png", (folder / "pixels.png").read_bytes()[:-900])
    written("claim.png", SIGNATURE + header(60_000, 60_000) + chunk(b"IDAT", b""))
    written("empty.png", b"")
    Image.new("1", (1, 10_000)).save(folder / "thin.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    formats = "can't be decoded: not a picture that can be read; formats are JPEG, PNG, WEBP"
    damaged = "can't be decoded: it is damaged"
    return {
        **dict.fromkeys(("a.tif", "a.ppm", "a.dds", "a.eps", "profile.png"), formats),
        **dict.fromkeys(("photo.jpg", "chunk.png", "pixels.png"), damaged),
        "claim.png": "has many more pixels",
        "thin.png": "has 1 x 10000 pixels, of which the base's processor makes up to",
        "empty.png": "can't be read: its file is empty",
        "fifo.png": "can't be read: it is a device, pipe or socket",
        "folder.png": "can't be read: it is a folder",
        "nul\0.png": "image must be a path below data.images",
        "x" * 300: "can't be read: File name too long",
        "folder.png/a.png": "is missing",
    }


@pytest.mark.parametrize("keep", [False, True])
def test_every_odd_picture_is_a_problem_and_every_row_survives(tmp_path: Path, keep: bool) -> None:
    """Whatever its decoder raises: the survey goes to its end and names file and row."""
    root = one_task(tmp_path / "coin", 1)
    expected = odd_pictures(root)
    Image.new("RGB", (8, 8)).save(root / "good.gif")
    names = [*expected, "good.gif"]
    rows = [
        {"question_id": i, "text": "?", "answer": "a", "image": name}
        for i, name in enumerate(names)
    ]
    file = root / "Instructions_Original/GQA/train.json"
    file.write_text(json.dumps(rows))
    found = survey(Preparation(root, ".", ("GQA",), str(tmp_path / "out")), map, keep=keep)
    assert found.rows == len(rows), "and one test row; a path with NUL is no path"
    assert found.pictures["good.gif"][2:] == (8, 8, "")
    assert len(found.problems) == len(expected)
    for number, (name, cause) in enumerate(expected.items()):
        (problem,) = [p for p in found.problems if p.startswith(f"{file}, row {number}: ")]
        assert cause in problem
        assert problem.isprintable()
        assert name.partition("\0")[0] in problem


@pytest.mark.parametrize("alike", [False, True])
def test_a_picture_that_is_replaced_after_an_interruption_is_scanned_again(
    root: Path, tmp_path: Path, alike: bool
) -> None:
    """Also by one of the same size that keeps its predecessor's modification time."""
    copy, out = tmp_path / "coin", str(tmp_path / "out")
    shutil.copytree(root, copy)
    job = Preparation(copy, ".", ("GQA",), out)
    name = next(iter(survey(job, map, keep=True).pictures))
    before = (copy / name).stat()
    if alike:
        data = bytearray((copy / name).read_bytes())
        data[-1] ^= 1  # of the last chunk's checksum, which says nothing of the picture
        (copy / "other").write_bytes(data)
        os.utime(copy / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
        (copy / "other").rename(copy / name)
        assert (copy / name).stat().st_mtime_ns == before.st_mtime_ns
        assert (copy / name).stat().st_size == before.st_size
    else:
        Image.new("RGB", (9, 9)).save(copy / name)
    prepare(job, survey(job, map, keep=True), map)
    (task,) = read_tasks(DataConfig(root=out, tasks=("GQA",)), seed=0)
    stored = {str(s.image).partition(" ")[0]: content(s)[3] for s in task.train if s.image}
    assert stored[name] == (copy / name).read_bytes()


def test_limits_of_pictures_belong_to_a_kept_scan(root: Path, tmp_path: Path) -> None:
    job = Preparation(root, ".", ("GQA",), str(tmp_path / "out"))
    assert not survey(job, map, keep=True).problems
    small = replace(job, limits=ImageLimits(pixels=10))
    found = survey(small, map, keep=True)
    assert len(found.problems) == len(found.pictures)
    assert "pixels; at most 10" in found.problems[0]


def test_a_picture_that_changes_on_the_way_is_refused(root: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "coin", str(tmp_path / "out")
    shutil.copytree(root, copy)
    job = Preparation(copy, ".", TASKS, out)
    found = survey(job, map, keep=False)
    Image.new("RGB", (9, 9)).save(copy / next(iter(found.pictures)))
    with pytest.raises(DataError, match="changed while it was prepared"):
        prepare(job, found, map)
    (copy / next(iter(found.pictures))).unlink()
    with pytest.raises(DataError, match="is missing"):
        prepare(job, found, map)
    assert read_manifest(out) is None
    assert not list(Path(out).rglob("*.parquet"))


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
