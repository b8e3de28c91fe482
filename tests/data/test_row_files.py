"""Files of rows, and rows that were prepared: what is wrong is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.rows import BASE, problems, read, talk, write

from cmoe.common.errors import DataError
from cmoe.data.coin import read_tasks
from cmoe.data.prepare import prepare
from cmoe.data.row_rules import RowRule
from cmoe.data.samples import Turn
from cmoe.data.settings import DataConfig
from cmoe.data.shards import read_manifest, read_rows, require_usable_rows
from cmoe.data.survey import Preparation, survey
from cmoe.tasks.answer_files import read_targets

# Pictures


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("a\0.png", "image must be a path below data.images"),
        ("/etc/passwd", "image must be a path below data.images"),
        ("a/../../b.png", "image must be a path below data.images"),
        ("", "image must be a path below data.images"),
        (" ", "image must be a path below data.images"),
        ([["a.png"]], "image must be a path below data.images"),
        ({"a": "a.png"}, "image must be a path below data.images"),
        (["a.png", ""], "image must be a path below data.images"),
        ("gone.png", "gone.png is missing"),
        ("folder", "is missing: this is no regular file"),
        ("pipe", "is missing: this is no regular file"),
        ("a.png/b.png", "can't be read: Not a directory"),
        ("x" * 300, "can't be read: File name too long"),
        ("x/" * 3000 + "a.png", "can't be read: File name too long"),
    ],
)
def test_a_picture_is_a_file_below_its_folder(tmp_path: Path, path: Any, cause: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    file = write(tmp_path, "train", [talk("What?", "yes", image=path)])
    with pytest.raises(DataError) as refused:
        read(tmp_path)
    assert str(refused.value).startswith(f"{file}, row 0: ")
    assert cause in str(refused.value)
    assert "(id '7')" in str(refused.value)
    assert len(problems(tmp_path)) == 1, "nor does a survey stop at it, or wait for a pipe"


def test_every_row_survives_its_neighbours(tmp_path: Path) -> None:
    """A survey names all of them at once."""
    bad = [
        3,
        None,
        [],
        {},
        talk("What?", "\ud800", id=1),
        talk("What?", "yes", id=[1]),
        talk("What?", "<s>", id=2),
        talk("What?", "yes", id=3, image="a\0b.png"),
        talk("What?", "yes", id=4, image="gone.png"),
        talk("What?", "yes", id=10**50, size=[10**50, 1]),
    ]
    rows = [row for each in bad for row in (talk("What?", "yes"), each)]
    file = write(tmp_path, "train", rows)
    found = survey(Preparation(tmp_path, ".", ("GQA",), "", BASE), map, keep=False)
    named = sorted(int(p.removeprefix(f"{file}, row ").split(":")[0]) for p in found.problems)
    assert named == list(range(1, 2 * len(bad), 2))
    assert found.rows == len(bad) + 2, "the good ones, one test row, one without its picture"


# Files


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("\ufeff[]".encode(), "a list with at least one sample"),
        ("[]".encode("utf-16"), "UTF-8"),
        ('["é"]'.encode("latin-1"), "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "not JSON"),
        (b'[{"id": 1, "id": 2}]', "'id' stands twice in one object"),
        (b"[NaN]", "NaN is no number"),
        (b"[1e999]", "an object is needed, this is float"),
        (b"", "not JSON"),
    ],
)
def test_a_file_that_is_no_list_of_rows_is_named(
    tmp_path: Path, content: bytes, cause: str
) -> None:
    file = write(tmp_path, "test", [])
    file.write_bytes(content)
    with pytest.raises(DataError, match=cause) as refused:
        read(tmp_path)
    assert str(file) in str(refused.value)
    assert [cause in problem for problem in problems(tmp_path)] == [True]
    with pytest.raises(DataError) as scored:
        read_targets("GQA", file)
    assert str(file) in str(scored.value)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_rows_are_read_from_a_regular_file(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path, "test", [])
    file.unlink()
    file.mkdir() if kind == "folder" else os.mkfifo(file)
    with pytest.raises(DataError, match=r"test\.json: (no regular file|can't be read)"):
        read(tmp_path)


# Prepared rows


def test_two_tasks_too_many_are_told_from_each_other(tmp_path: Path) -> None:
    write(tmp_path, "train", [talk(f"What {n}?", "yes") for n in range(7)])
    config = DataConfig(root=str(tmp_path), tasks=("GQA",))
    with pytest.raises(DataError, match=r"GQA: 7 training samples; .* at least 8 of each task"):
        read_tasks(config, 0, least=8)
    write(tmp_path, "train", [talk(f"What {n}?", "yes") for n in range(10)])
    assert len(read_tasks(config, 0, least=8)[0].train) == 10
    held = DataConfig(root=str(tmp_path), tasks=("GQA",), selection=0.3)
    with pytest.raises(DataError, match=r"7 training samples, without the data\.selection of 0\.3"):
        read_tasks(held, 0, least=8)


@pytest.mark.parametrize("name", ["a[1]", "b*c", "d?e", "[x", "g{h}", "a[!b]"])
def test_a_folder_may_be_named_like_a_pattern(tmp_path: Path, name: str) -> None:
    write(tmp_path, "train", [talk("What?", "yes")])
    out = tmp_path / name / "out"
    beside = tmp_path / "bxc" / "out"  # what the pattern would find as well
    for folder in (out, beside):
        job = Preparation(tmp_path, ".", ("GQA",), str(folder))
        prepare(job, survey(job, map, keep=True), map)
        assert not (folder / "partial").exists()
    (task,) = read_tasks(DataConfig(root=str(out), tasks=("GQA",)), 0, base=BASE)
    assert [s.text for s in task.train] == ["What?"]
    with task.train[0].images[0].open() as opened, Image.open(opened) as image:
        assert image.size == (40, 30)


def test_prepared_rows_that_were_tampered_with_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path, "train", [talk(f"What {n}?", "yes", "And?", "no", id=n) for n in range(3)])
    out = tmp_path / "out"
    job = Preparation(tmp_path, ".", ("GQA",), str(out))
    prepare(job, survey(job, map, keep=False), map)
    manifest = read_manifest(str(out))
    assert manifest is not None
    (shard,) = (out / "rows").glob("GQA-train-*")
    whole = pq.read_table(shard)
    for number, (column, value, cause) in enumerate(
        [
            ("text", "", "the question not empty"),
            ("text", None, "text must be text"),
            ("answer", "a <s>", "'<s>'"),
            (
                "further",
                [{"text": "<image>\nB <image>?", "answer": "no"}],
                r"further\[0\].text holds '<image>', 2 in all, and the row's images are 1",
            ),
            ("further", None, "prepare the data again"),
            ("question_id", " ", "question_id must be"),
            ("images", [{"shard": 9, "group": 0, "row": 0, "name": "a"}], "prepare the data again"),
        ]
    ):
        values = whole.to_pylist()
        values[1][column] = value
        table = pa.Table.from_pylist(values, schema=whole.schema)
        changed = shard.with_name(f"changed-{number}.parquet")
        pq.write_table(table, changed)
        manifest["tasks"]["GQA"]["train"]["shards"][0]["file"] = f"rows/{changed.name}"
        rows = read_rows(str(out), manifest, "GQA", "train")
        with pytest.raises(DataError, match=rf"{changed.stem}\.parquet, row 1: .*{cause}"):
            require_usable_rows(rows, str(out), manifest, RowRule("GQA", "train", BASE))


@pytest.mark.parametrize(
    "manifest",
    [
        {"format": 1},
        {"format": 1, "tasks": []},
        {"format": 1, "tasks": {"GQA": []}},
        {"format": 1, "tasks": {"GQA": {"train": {"rows": "3"}}}},
        {"format": 1, "tasks": {"GQA": {"train": {"rows": 3}, "test": {"rows": 1}}}},
        {"format": [1], "tasks": {}},
        {"tasks": {}},
        7,
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, manifest: Any) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest\.json"):
        read(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1, "tasks": {}, "tasks": {}}')
    with pytest.raises(DataError, match="'tasks' stands twice"):
        read(tmp_path)


def test_turns_are_kept_whole(tmp_path: Path) -> None:
    write(tmp_path, "train", [talk("<image>\nA?", "a", "B?\n", " b ", "C?", "c")])
    (sample,) = read(tmp_path).train
    assert sample.further == (Turn("B?", " b "), Turn("C?", "c"))
