"""What is wrong with data is named before anything is prepared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.paths import JOBS
from support.picture_files import SIGNATURE, chunk, header, png
from support.prepared import content, one_task

from cmoe.common.errors import DataError
from cmoe.data.coin import read_tasks
from cmoe.data.image_limits import ImageLimits
from cmoe.data.prepare import prepare
from cmoe.data.samples import Sample
from cmoe.data.settings import TASKS, DataConfig
from cmoe.data.shards import read_manifest
from cmoe.data.survey import Preparation, Scan, survey, with_box


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


@pytest.mark.ray
def test_a_dry_run_names_every_problem_at_once_and_writes_nothing(
    root: Path, tmp_path: Path
) -> None:
    copy, expected = spoiled(root, tmp_path)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    command = [sys.executable, str(JOBS / "coin_prepare.py"), "--root", str(copy)]
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
        boxed = with_box(sample, [picture])
        assert boxed.size == size or (answer == "[0, 0, 32, 24]" and boxed.size == (32, 24))
        return
    with pytest.raises(DataError, match=r"leaves its picture|must be a box of four numbers"):
        with_box(sample, [picture])


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
        "claim.png": "has 60000 x 60000 pixels; at most ",
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
    assert found.pictures[root / "good.gif"][2:] == (8, 8, "")
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
    stored = {str(s.images[0]).partition(" ")[0]: content(s)[3] for s in task.train if s.images}
    assert isinstance(name, Path)
    assert stored[str(name.relative_to(copy))] == (copy / name).read_bytes()


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
