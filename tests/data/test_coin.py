"""CoIN's files: what is written is read, what can't be used is named, and splits are honest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmoe.common.errors import DataError
from cmoe.data.coin import read_tasks
from cmoe.data.samples import Turn
from cmoe.data.settings import TASKS, DataConfig
from cmoe.mini.tasks import SIZE, ensure_data, make_sample, write_mini_coin

TRAIN, TEST = 12, 5
VALIDATED = {"TextVQA", "VizWiz", "VQAv2"}  # coin.md: evaluated on val.json


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coin")
    write_mini_coin(root, train=TRAIN, test=TEST)
    return root


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A root with one hand-made task, to be spoiled."""
    folder = tmp_path / "Instructions_Original" / "GQA"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    write(tmp_path, "train.json", [train_row(i) for i in range(4)])
    write(tmp_path, "test.json", [question(i) for i in range(3)])
    return tmp_path


def train_row(number: int, **changes: Any) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": f"<image>\nQuestion {number}?"},
        {"from": "gpt", "value": f"answer {number}"},
    ]
    return {"id": number, "image": "a.png", "conversations": turns} | changes


def question(number: int, **changes: Any) -> dict[str, Any]:
    row = {"question_id": number, "image": "a.png", "text": f"Test {number}?", "answer": "yes"}
    return row | changes


def write(root: Path, name: str, rows: Any) -> Path:
    file = root / "Instructions_Original" / "GQA" / name
    file.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return file


def config(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(**({"root": str(root), "tasks": ("GQA",)} | changes))


def test_what_the_generator_writes_is_read_for_all_eight_tasks(root: Path) -> None:
    tasks = read_tasks(DataConfig(root=str(root)), seed=0)
    assert tuple(t.name for t in tasks) == TASKS
    assert len(tasks) == 8
    texts_alone = 0
    for task in tasks:
        folder = root / "Instructions_Original" / task.name
        assert (folder / "val.json").is_file() == (task.name in VALIDATED)
        for split, samples, count in (("train", task.train, TRAIN), ("test", task.test, TEST)):
            assert len({s.id for s in samples}) == len(samples) == count
            for index, sample in enumerate(samples):
                made = make_sample(task.name, split, index)
                assert (sample.text, sample.answer) == (made.text, made.answer)
                assert (not sample.images) == (made.image is None)
                if made.image is None:
                    texts_alone += 1
                    continue
                with Image.open(*sample.images) as image:
                    assert image.tobytes() == made.image.tobytes()
        boxed = task.name == "Grounding"
        assert all(s.size == ((SIZE, SIZE) if boxed else None) for s in task.test)
    assert texts_alone > 0, "ScienceQA has questions without a picture"


def test_limits_take_the_first_samples_and_open_no_others(one: Path) -> None:
    rows = [train_row(0), train_row(1), train_row(2, image="gone.png")]
    write(one, "train.json", rows)
    (task,) = read_tasks(config(one, train_samples=2, test_samples=1), seed=0)
    assert [s.id for s in task.train] == ["0", "1"]
    assert [s.id for s in task.test] == ["0"]


def test_numbers_and_strings_as_ids_pictures_elsewhere_and_sizes(one: Path) -> None:
    (one / "pictures" / "deep").mkdir(parents=True)
    shutil.move(one / "a.png", one / "pictures" / "deep" / "a.png")
    write(one, "train.json", [train_row(7, image="deep/a.png", size=[640, 480])])
    text_only = question(0, question_id="x/1", text="No picture?")
    del text_only["image"]
    write(one, "test.json", [text_only])
    (task,) = read_tasks(config(one, images="pictures"), seed=0)
    (sample,) = task.train
    assert (sample.id, sample.size) == ("7", (640, 480))
    assert sample.images == (one / "pictures" / "deep" / "a.png",)
    assert sample.text == "Question 7?", "the placeholder and its line break are gone"
    assert (task.test[0].id, task.test[0].images, task.test[0].text) == ("x/1", (), "No picture?")


def test_a_conversation_keeps_its_turns(one: Path) -> None:
    row = train_row(0)
    more = [{"from": "human", "value": "And now?"}, {"from": "gpt", "value": "later"}]
    write(one, "train.json", [row | {"conversations": row["conversations"] + more}, train_row(1)])
    (task,) = read_tasks(config(one), seed=0)
    sample, plain = task.train
    assert (sample.text, sample.answer) == ("Question 0?", "answer 0")
    assert sample.further == (Turn("And now?", "later"),)
    assert plain.further == ()


def half_a_turn(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"conversations": [*row["conversations"], row["conversations"][0]]}


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"conversations": [*row["conversations"], *row["conversations"][::-1]]}


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {n: v for n, v in row.items() if n != name}


def answered(row: dict[str, Any], answer: Any) -> dict[str, Any]:
    human, _ = row["conversations"]
    return row | {"conversations": [human, {"from": "gpt", "value": answer}]}


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda r: without(r, "id"), "neither id nor question_id"),
        (lambda r: r | {"image": "gone.png"}, "gone.png is missing"),
        (lambda r: r | {"image": "."}, "is missing"),
        (half_a_turn, "by turns"),
        (swapped, "by turns"),
        (lambda r: r | {"conversations": r["conversations"][::-1]}, "by turns"),
        (lambda r: r | {"conversations": []}, "by turns"),
        (lambda r: r | {"conversations": 3}, "by turns"),
        (lambda r: r | {"conversations": ["a", "b"]}, "by turns"),
        (lambda r: r | {"conversations": [{"from": "human"}, {"from": "gpt"}]}, "by turns"),
        (lambda r: r | {"id": None}, "neither id nor question_id"),
        (lambda r: r | {"image": 3}, "image must be a path below"),
        (lambda r: r | {"image": "../a.png"}, "image must be a path below"),
        (lambda r: r | {"image": "/etc/a.png"}, "image must be a path below"),
        (lambda r: r | {"size": [1]}, "size must be width and height"),
        (lambda r: without(r, "conversations"), "neither conversations nor text and answer"),
        (lambda r: answered(r, ""), "the answer not empty"),
        (lambda r: answered(r, " \n"), "the answer not empty"),
        (lambda r: answered(r, 3), "must be text"),
        (lambda r: "row", "an object is needed, this is str"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    one: Path, spoil: Callable[[dict[str, Any]], Any], cause: str
) -> None:
    file = write(one, "train.json", [train_row(0), train_row(1), spoil(train_row(2))])
    with pytest.raises(DataError) as refused:
        read_tasks(config(one), seed=0)
    message = str(refused.value)
    assert message.startswith(f"{file}, row 2: ")
    assert cause in message


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda r: without(r, "question_id"), "neither id nor question_id"),
        (lambda r: r | {"question_id": 0}, "id '0' is row 0's already"),
        (lambda r: r | {"question_id": "0"}, "id '0' is row 0's already"),
        (lambda r: without(r, "answer"), "neither conversations nor text and answer"),
        (lambda r: r | {"answer": ""}, "the answer not empty"),
        (lambda r: r | {"text": None}, "must be text"),
    ],
)
def test_a_test_row_that_cannot_be_used_is_named(
    one: Path, spoil: Callable[[dict[str, Any]], Any], cause: str
) -> None:
    file = write(one, "test.json", [question(0), spoil(question(1))])
    with pytest.raises(DataError) as refused:
        read_tasks(config(one), seed=0)
    assert str(refused.value).startswith(f"{file}, row 1: ")
    assert cause in str(refused.value)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("[{", "not JSON"),
        ("\x00", "not JSON"),
        ("[]", "at least one sample"),
        ('{"id": 1}', "a list"),
        ("null", "a list"),
    ],
)
@pytest.mark.parametrize("name", ["train.json", "test.json"])
def test_a_file_that_cannot_be_used_is_named(
    one: Path, name: str, content: str, cause: str
) -> None:
    file = write(one, name, content)
    with pytest.raises(DataError, match=cause) as refused:
        read_tasks(config(one), seed=0)
    assert str(refused.value).startswith(f"{file}: ")


def test_missing_and_doubled_files_are_named(one: Path) -> None:
    folder = one / "Instructions_Original" / "GQA"
    with pytest.raises(DataError, match=r"VQAv2: needs train\.json, one of them; has 0"):
        read_tasks(config(one, tasks=("GQA", "VQAv2")), seed=0)
    shutil.copy(folder / "test.json", folder / "val.json")
    with pytest.raises(DataError, match=r"test\.json or val\.json, one of them; has 2") as refused:
        read_tasks(config(one), seed=0)
    assert str(folder) in str(refused.value)
    (folder / "test.json").unlink()
    (task,) = read_tasks(config(one), seed=0)
    assert len(task.test) == 3, "val.json alone is fine"
    (folder / "val.json").unlink()
    with pytest.raises(DataError, match="one of them; has 0"):
        read_tasks(config(one), seed=0)


def test_data_is_generated_once_where_asked_for_and_too_little_is_refused(tmp_path: Path) -> None:
    small = DataConfig(
        root=str(tmp_path / "data"), generate=True, train_samples=3, test_samples=2, tasks=("GQA",)
    )
    with pytest.raises(DataError, match=r"data: neither Instructions_Original nor .*generate"):
        ensure_data(replace(small, generate=False))
    assert not list(tmp_path.iterdir())
    ensure_data(small)
    (task,) = read_tasks(small, seed=0)
    assert (len(task.train), len(task.test)) == (3, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    ensure_data(small)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}, "written once"

    for changes, name in (({"train_samples": 4}, "train.json"), ({"test_samples": 3}, "test.json")):
        asked = replace(small, **changes)
        ensure_data(asked)
        with pytest.raises(DataError, match=rf"{name}: . samples, . are asked for; remove .*data"):
            read_tasks(asked, seed=0)
        (task,) = read_tasks(replace(asked, generate=False), seed=0)
        assert (len(task.train), len(task.test)) == (3, 2), "CoIN's own files may be smaller"


def test_runs_that_begin_at_once_share_the_data_that_one_of_them_generates(tmp_path: Path) -> None:
    small = DataConfig(
        root=str(tmp_path / "data"), generate=True, train_samples=3, test_samples=2, tasks=("GQA",)
    )
    together = Barrier(4)

    def begin(_: int) -> None:
        together.wait()
        ensure_data(small)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(begin, range(4)))
    (task,) = read_tasks(small, seed=0)
    assert (len(task.train), len(task.test)) == (3, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@settings(max_examples=25, deadline=None)
@given(share=st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9]), seed=st.integers(0, 99))
def test_selection_is_kept_from_training_whole_and_by_the_seed_alone(
    root: Path, share: float, seed: int
) -> None:
    tasks = ("ScienceQA", "OCRVQA")
    plain = DataConfig(root=str(root), tasks=tasks)
    chosen = replace(plain, selection=share, evaluate_on="selection")
    whole, held = read_tasks(plain, seed), read_tasks(chosen, seed)
    for all_, split in zip(whole, held, strict=True):
        train, selection = set(split.train), set(split.test)
        assert not train & selection
        assert train | selection == set(all_.train)
        assert len(split.train) + len(split.test) == len(all_.train)
        assert abs(len(selection) - share * TRAIN) <= 0.5 or len(selection) == 1
    # A function of seed and task: not of the other tasks, nor of what is judged.
    assert read_tasks(replace(chosen, tasks=tasks[1:]), seed) == held[1:]
    tested = read_tasks(replace(chosen, evaluate_on="test"), seed)
    assert [t.train for t in tested] == [t.train for t in held]
    assert [t.test for t in tested] == [t.test for t in whole]


def test_seeds_and_tasks_choose_selections_of_their_own(root: Path) -> None:
    chosen = DataConfig(root=str(root), selection=0.5, evaluate_on="selection")

    def places(seed: int, task: int) -> frozenset[int]:
        return frozenset(int(s.id[-5:]) for s in read_tasks(chosen, seed)[task].test)

    assert len({places(seed, 0) for seed in range(5)}) > 1
    assert len({places(0, task) for task in range(8)}) > 1


def test_a_selection_that_leaves_nothing_to_train_on_is_refused(one: Path) -> None:
    with pytest.raises(DataError, match=r"GQA: 4 training samples, and data\.selection 0\.9"):
        read_tasks(config(one, selection=0.9), seed=0)


def test_choosing_on_the_selection_never_opens_the_test_file(one: Path) -> None:
    settings_ = config(one, selection=0.5, evaluate_on="selection")
    before = read_tasks(settings_, seed=0)
    (one / "Instructions_Original" / "GQA" / "test.json").unlink()
    assert read_tasks(settings_, seed=0) == before
    with pytest.raises(DataError):
        read_tasks(replace(settings_, evaluate_on="test"), seed=0)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"tasks": ()}, "one task or more, each once"),
        ({"tasks": ("GQA", "GQA")}, "one task or more, each once"),
        ({"selection": 1.0}, "0 or more, and less than 1"),
        ({"selection": -0.1}, "0 or more, and less than 1"),
        ({"evaluate_on": "selection"}, "data.selection is 0"),
        ({"train_samples": 0}, "data.train_samples is 0; at least 1, or null"),
        ({"max_length": 0}, "data.max_length is 0; at least 1, or null"),
        ({"generate": True, "train_samples": 3}, "needs data.train_samples and data.test_samples"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        DataConfig(**changes)
