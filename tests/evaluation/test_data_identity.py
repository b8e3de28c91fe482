"""A run is of its data: whatever changes in it is noticed, by task and split, and said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmoe.common.errors import DataError
from cmoe.common.run_files import RunFileError
from cmoe.data.coin import read_tasks, split_file
from cmoe.data.fingerprint import image_files
from cmoe.data.prepare import prepare
from cmoe.data.samples import Sample
from cmoe.data.settings import DataConfig
from cmoe.data.survey import Preparation, survey
from cmoe.evaluation.data_identity import claim_data, fingerprints, require_same_rows, trained_on
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.evaluation.targets import stream_targets
from cmoe.folder import DATA
from cmoe.mini.tasks import ensure_data

TASKS = ("GQA", "VizWiz")
ROWS = 9


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("identity") / "data"
    ensure_data(config(root))
    return root


@pytest.fixture
def data(generated: Path, tmp_path: Path) -> DataConfig:
    """A copy, with its images' times."""
    shutil.copytree(generated, tmp_path / "data")
    return config(tmp_path / "data")


def config(root: Path, **changes: Any) -> DataConfig:
    values = {"generate": True, "train_samples": ROWS, "test_samples": ROWS}
    return DataConfig(str(root), **{"tasks": TASKS, **values, **changes})


def claim(
    folder: Path, data: DataConfig, evaluation: EvaluationConfig | None = None, seed: int = 0
) -> None:
    """What a run does when it starts."""
    evaluation = evaluation or EvaluationConfig()
    tasks = read_tasks(data, seed)
    targets = stream_targets(tasks, data, evaluation)
    folder.mkdir(exist_ok=True)
    claim_data(folder, fingerprints(tasks, targets, data, evaluation))


def refused(folder: Path, data: DataConfig, *more: Any) -> list[str]:
    """The lines that say what changed; the file stays as it was."""
    before = (folder / DATA).read_bytes()
    with pytest.raises(DataError) as raised:
        claim(folder, data, *more)
    assert (folder / DATA).read_bytes() == before
    head, *lines = str(raised.value).splitlines()
    assert str(folder / DATA) in head
    for way_out in ("put it back", "another name", "remove this file"):
        assert way_out in head
    return [line.strip() for line in lines]


def edit(data: DataConfig, change: Callable[[list[Any]], None], split: str = "test") -> None:
    file = split_file(Path(data.root), "GQA", split)
    rows = json.loads(file.read_text())
    change(rows)
    file.write_text(json.dumps(rows))


def image_of(data: DataConfig, split: str = "test", number: int = 4) -> Path:
    return Path(
        data.root,
        json.loads(split_file(Path(data.root), "GQA", split).read_text())[number]["image"],
    )


def test_the_same_data_goes_on_also_read_and_written_anew(data: DataConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run, data)
    before = (run / DATA).read_bytes()
    edit(data, lambda rows: None)  # the same rows, as other bytes
    claim(run, data)
    shutil.rmtree(data.root)  # what is generated is a function of its settings
    ensure_data(data)
    claim(run, data)
    moved = replace(data, root=str(tmp_path / "moved"))
    Path(data.root).rename(moved.root)
    claim(run, moved)
    assert (run / DATA).read_bytes() == before
    said = json.loads(before)["tasks"]
    assert {task: [*parts] for task, parts in said.items()} == {
        "GQA": ["train", "test"],
        "VizWiz": ["train", "test"],
    }


def test_what_is_asked_otherwise_in_training_is_the_same_data(
    data: DataConfig, tmp_path: Path
) -> None:
    claim(tmp_path / "run", data)
    before = (tmp_path / "run" / DATA).read_bytes()
    claim(tmp_path / "run", replace(data, paraphrase=0.5))
    assert (tmp_path / "run" / DATA).read_bytes() == before


CHANGES: dict[str, tuple[Callable[[list[Any]], None], str]] = {
    "another question": (
        lambda rows: rows[4].update(text="What?"),
        "1 of 9 samples differ; the first that differs is 'GQA-test-00004'",
    ),
    "another answer": (
        lambda rows: rows[4].update(answer="teal"),
        "1 of 9 samples differ; the first that differs is 'GQA-test-00004'",
    ),
    "another image": (
        lambda rows: rows[4].update(image=rows[5]["image"]),
        "1 of 9 samples differ; the first that differs is 'GQA-test-00004'",
    ),
    "another size": (
        lambda rows: rows[4].update(size=[1, 2]),
        "1 of 9 samples differ; the first that differs is 'GQA-test-00004'",
    ),
    "another id": (
        lambda rows: rows[4].update(question_id="new"),
        "1 of 9 samples differ; the first that differs is 'new'",
    ),
    "two ids exchanged": (
        lambda rows: [
            rows[4].update(question_id="GQA-test-00005"),
            rows[5].update(question_id="GQA-test-00004"),
        ],
        "2 of 9 samples differ; the first that differs is 'GQA-test-00005'",
    ),
    "another order": (
        lambda rows: rows.reverse(),
        "the same samples in another order; the first that differs is 'GQA-test-00008'",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_row_is_named(data: DataConfig, tmp_path: Path, name: str) -> None:
    claim(tmp_path / "run", data)
    change, message = CHANGES[name]
    edit(data, change)
    assert refused(tmp_path / "run", data) == [f"GQA, test: {message}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(0), "8 samples, 9 before; the first that differs is 'GQA-{}-00001'"),
        (lambda rows: rows.pop(3), "8 samples, 9 before; the first that differs is 'GQA-{}-00004'"),
        (lambda rows: rows.pop(), "8 samples, 9 before; the last are gone"),
        (
            lambda rows: rows.append({**rows[0], "id": "new", "question_id": "new"}),
            "10 samples, 9 before; the first that differs is 'new'",
        ),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_removed_and_added_are_counted(
    data: DataConfig, tmp_path: Path, split: str, change: Any, message: str
) -> None:
    every = replace(data, generate=False, train_samples=None, test_samples=None)
    claim(tmp_path / "run", every)
    edit(every, change, split)
    assert refused(tmp_path / "run", every) == [f"GQA, {split}: {message.format(split)}"]


def test_a_further_turn_of_a_training_row_counts(data: DataConfig, tmp_path: Path) -> None:
    claim(tmp_path / "run", data)
    more = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    edit(data, lambda rows: rows[0]["conversations"].extend(more), "train")
    (line,) = refused(tmp_path / "run", data)
    assert line.startswith("GQA, train: 1 of 9 samples differ")


def test_rows_beyond_the_limit_are_not_of_the_run(data: DataConfig, tmp_path: Path) -> None:
    few = replace(data, train_samples=5, test_samples=5)
    claim(tmp_path / "run", few)
    for split in ("train", "test"):
        edit(few, lambda rows: rows.pop(), split)
    claim(tmp_path / "run", few)


def test_replaced_images_are_named(data: DataConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run, data)
    test, train = image_of(data), image_of(data, "train", 2)
    shutil.copyfile(image_of(data, "test", 5), test)
    with train.open("ab") as file:
        file.write(b"more")
    assert refused(run, data) == [
        "GQA, train: 1 of 9 samples have another image under the same name; the first that "
        "differs is 'GQA-train-00002'",
        "GQA, test: 1 of 9 samples have another image under the same name; the first that "
        "differs is 'GQA-test-00004'",
    ]


def test_an_image_of_the_same_size_is_known_by_its_time(data: DataConfig, tmp_path: Path) -> None:
    run, image = tmp_path / "run", image_of(data)
    claim(run, data)
    before = image.stat()
    image.write_bytes(bytes(reversed(image.read_bytes())))
    (line,) = refused(run, data)
    assert "1 of 9 samples have an image that was written again since" in line
    assert "'GQA-test-00004'" in line
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    claim(run, data)


def test_a_working_directorys_copy_has_new_times_with_every_job(
    generated: Path, tmp_path: Path
) -> None:
    """Ray unpacks it for each: the names and sizes count alone."""
    run = tmp_path / "run"
    for job in ("one", "two"):
        root = tmp_path / job / "working_dir_files" / "pkg" / "data"
        shutil.copytree(generated, root, copy_function=shutil.copyfile)
        claim(run, config(root))
    with image_of(config(root)).open("ab") as file:
        file.write(b"more")
    assert len(refused(run, config(root))) == 1


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    for name in ("gone.png", "a\0b.png"):
        sample = Sample("1", "?", "x", (tmp_path / name,))
        with pytest.raises(DataError, match=r"image .*(gone|b)\.png"):
            image_files([[sample]], str(tmp_path))


def test_the_selection_split_has_its_own_part(data: DataConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    part = replace(data, selection=0.3, evaluate_on="selection")
    claim(run, part)
    edit(part, lambda rows: rows.pop(), "test")  # isn't read
    claim(run, replace(part, generate=False))
    held = {sample.id for sample in read_tasks(part, 0)[0].test}
    at = next(n for n in range(ROWS) if f"GQA-train-{n:05d}" in held)
    edit(part, lambda rows: rows[at]["conversations"][1].update(value="teal"), "train")
    (line,) = refused(run, part)
    assert line.startswith("GQA, selection: 1 of 3 samples differ")


def test_parts_read_later_are_added_and_those_before_stay(data: DataConfig, tmp_path: Path) -> None:
    """As a sweep's folder, whose winners are judged on the test when it is over."""
    run = tmp_path / "run"
    data = replace(data, selection=0.3)
    claim(run, replace(data, evaluate_on="selection"))
    claim(run, data)
    parts = json.loads((run / DATA).read_text())["tasks"]["GQA"]
    assert [*parts] == ["train", "selection", "test"]
    edit(data, lambda rows: rows[0].update(answer="teal"))
    (line,) = refused(run, data)
    assert line.startswith("GQA, test: ")
    assert [[*of] for of in trained_on(run).values()] == [["train"]] * len(TASKS)


def test_an_answer_file_is_data(data: DataConfig, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "answers.json"
    evaluation = EvaluationConfig(answer_files={"GQA": str(file)})
    rows = json.loads(split_file(Path(data.root), "GQA", "test").read_text())
    file.write_text(json.dumps(rows))
    claim(run, data, evaluation)
    file.write_text(json.dumps([*rows, {**rows[0], "question_id": "unasked"}]))
    claim(run, data, evaluation)
    rows[6]["answer"] = "teal"
    file.write_text(json.dumps(rows))
    assert refused(run, data, evaluation) == [
        "GQA, answers: 1 of 9 samples differ; the first that differs is 'GQA-test-00006'"
    ]


def test_every_task_and_part_that_changed_is_listed(data: DataConfig, tmp_path: Path) -> None:
    claim(tmp_path / "run", data)
    for task in TASKS:
        for split in ("train", "test"):
            file = split_file(Path(data.root), task, split)
            rows = json.loads(file.read_text())
            file.write_text(json.dumps(rows[::-1]))
    lines = refused(tmp_path / "run", data)
    assert [line.partition(":")[0] for line in lines] == [
        f"{task}, {split}" for task in TASKS for split in ("train", "test")
    ]


def test_prepared_data_is_known_by_its_shards(data: DataConfig, tmp_path: Path) -> None:
    def prepared(name: str) -> DataConfig:
        job = Preparation(Path(data.root), ".", TASKS, str(tmp_path / name))
        prepare(job, survey(job, map, keep=True), map)
        return config(tmp_path / name, generate=False, train_samples=5, selection=0.4)

    run, first = tmp_path / "run", prepared("first")
    claim(run, first)
    claim(run, prepared("again"))
    with pytest.raises(DataError, match="GQA, train: other shards"):
        claim(run, replace(first, train_samples=6))
    with pytest.raises(DataError, match="GQA, train: other shards"):
        claim(run, first, seed=1)
    edit(data, lambda rows: rows[0].update(answer="teal"))
    lines = refused(run, prepared("mended"))
    assert lines == ["GQA, test: other shards, or other rows of them; 9 samples, 9 before"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 1, "tasks": {"GQA": 3}}',
        '{"format": 1, "tasks": {"GQA": 3}, "digest": "0"}',
        '{"format": 9, "tasks": {}, "digest": "0"}',
    ],
)
def test_a_damaged_file_is_named(data: DataConfig, tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    claim(run, data)
    (run / DATA).write_text(text)
    with pytest.raises(RunFileError, match=r"data\.json: .*remove it to go on"):
        claim(run, data)


def test_a_changed_byte_of_the_file_is_no_changed_data(data: DataConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run, data)
    text = (run / DATA).read_text()
    digest = json.loads(text)["tasks"]["GQA"]["train"]["rows"]
    (run / DATA).write_text(text.replace(digest, digest[::-1]))
    with pytest.raises(RunFileError, match="its digest is another"):
        claim(run, data)


def test_workers_that_start_again_refuse_rows_that_changed_meanwhile(
    data: DataConfig, tmp_path: Path
) -> None:
    run, evaluation = tmp_path / "run", EvaluationConfig()

    def start() -> None:
        tasks = read_tasks(data, 0)
        targets = stream_targets(tasks, data, evaluation)
        require_same_rows(run, tasks, targets, data, evaluation)

    start()  # without the file there is nothing to hold them against
    claim(run, data)
    os.utime(image_of(data))  # another machine's copy
    start()
    edit(data, lambda rows: rows[0]["conversations"][1].update(value="teal"), "train")
    with pytest.raises(DataError, match=r"on this machine: GQA, train\. Put them back"):
        start()


def test_a_relative_root_and_the_workers_absolute_one_are_the_same_data(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    (tmp_path / "link").symlink_to(data.root)
    monkeypatch.chdir(tmp_path)
    for root in ("data", str(tmp_path / "data"), "./link", "data/../data"):
        claim(run, replace(data, root=root))
    monkeypatch.chdir(tmp_path / "data")
    claim(run, replace(data, root="."))
