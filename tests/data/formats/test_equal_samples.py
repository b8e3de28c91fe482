"""What a task says doesn't depend on the format that its files have."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.own_files import (
    PICTURES,
    ROWS,
    Said,
    prepared_own,
    read_own,
    told,
    write_all,
    write_pictures,
    write_talks,
)

from cmoe.common.errors import DataError
from cmoe.data.coin import read_tasks
from cmoe.data.fingerprint import fingerprint
from cmoe.data.samples import PLACEHOLDER, EmbeddedPicture, InlinePicture
from cmoe.data.settings import DataConfig, OwnTask
from cmoe.tasks.answer_files import target_of

words = st.text(
    st.characters(codec="utf-8", exclude_characters="<\0", exclude_categories=("Cc", "Cf")),
    min_size=1,
    max_size=12,
).map(lambda text: f"q{text}".strip())
lines = st.lists(words, min_size=1, max_size=3).map("\n".join)


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    """A question with its images: each in its place in the text, or all in front of it."""
    images = tuple(draw(st.lists(st.sampled_from(PICTURES), max_size=3)))
    if not images or draw(st.booleans()):
        return draw(lines), images
    return PLACEHOLDER.join(draw(words) for _ in range(len(images) + 1)), images


@st.composite
def rows(draw: st.DrawFn, most: int) -> list[Said]:
    found = []
    for number in range(draw(st.integers(1, 4))):
        question, images = draw(questions())
        further = draw(st.lists(st.tuples(lines, lines), max_size=most - 1))
        found.append(Said(f"r{number}", ((question, draw(lines)), *further), images))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    write_pictures(root)
    return root


SLOW = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SLOW
@given(rows(most=1))
def test_every_format_says_the_same(root: Path, rows: list[Said]) -> None:
    found = {
        name: [list(map(told, split)) for split in (task.train, task.test)]
        for name, own in write_all(root, rows).items()
        for task in [read_own(root, own)]
    }
    first = found["llava.json"]
    assert [row[0] for row in first[0]] == [said.id for said in rows]
    assert [len(row[-1]) for row in first[0]] == [len(said.images) for said in rows]
    assert [name for name, each in found.items() if each != first] == []


@settings(SLOW, max_examples=30)
@given(rows(most=3))
def test_conversations_say_the_same(root: Path, rows: list[Said]) -> None:
    found = {
        name: list(map(told, read_own(root, own).train))
        for name, own in write_talks(root, rows).items()
    }
    first = found["llava.json"]
    assert [len(row[3]) for row in first] == [len(said.turns) - 1 for said in rows]
    assert [name for name, each in found.items() if each != first] == []


def test_prepared_it_says_the_same(root: Path, tmp_path: Path) -> None:
    written = write_all(root, ROWS)
    wanted = list(map(told, read_own(root, written["llava.json"]).train))
    stored = {
        name: prepared_own(root, tmp_path / str(number), own)
        for number, (name, own) in enumerate(written.items())
    }
    for name, task in stored.items():
        assert (list(map(told, task.train)), list(map(told, task.test))) == (wanted, wanted), name
        assert task.scorer == "exact"


def test_pictures_within_a_file_are_cheap_to_pass_on(root: Path) -> None:
    """They are equal where they are the same, and go to another process without their bytes."""
    written = write_all(root, ROWS)
    for name, kind in (("saved", EmbeddedPicture), ("data.jsonl", InlinePicture)):
        once, again = (read_own(root, written[name]).train for _ in range(2))
        assert once == again
        assert hash(once[0]) == hash(again[0])
        images = [image for sample in once for image in sample.images]
        assert {type(image) for image in images} == {kind}
        assert len({*images}) == 3
        assert pickle.loads(pickle.dumps(once)) == once  # noqa: S301
    saved = read_own(root, written["saved"]).train
    large = (root / "a.png").stat().st_size
    assert str(large) in repr(saved[0].images[0])
    assert (root / "a.png").read_bytes() not in pickle.dumps(saved)


def test_a_fingerprint_is_the_same_on_every_machine(root: Path, tmp_path: Path) -> None:
    """It names no folder, and tells one row's picture from another's."""
    (tmp_path / "there").mkdir()
    for name in ("data.jsonl", "saved", "part-*.parquet", "table.csv"):
        found = []
        for place in (root, tmp_path / "there"):
            write_pictures(place)
            own = write_all(place, ROWS)[name]
            found.append(fingerprint(read_own(place, own).train, str(place), {}))
        assert found[0] == found[1], name
        changed = [ROWS[0]._replace(images=("b.png", "a.png")), *ROWS[1:]]
        own = write_all(tmp_path / "there", changed)[name]
        other = fingerprint(read_own(tmp_path / "there", own).train, str(tmp_path / "there"), {})
        assert other != found[0], name


def test_answers_are_kept_and_the_commonest_is_trained_on(root: Path) -> None:
    rows = [
        ('["a", "b", "b"]', ("a", "b", "b"), "b"),
        ('["b", "a"]', ("b", "a"), "b"),
        ('["a"]', ("a",), "a"),
    ]
    text = "id,question,answers\n" + "".join(
        f'{n},What?,"{cell.replace(chr(34), chr(34) * 2)}"\n' for n, (cell, _, _) in enumerate(rows)
    )
    (root / "answers.csv").write_text(text)
    each = [{"text": "What?", "answers": list(answers)} for _, answers, _ in rows]
    (root / "answers.json").write_text(json.dumps(each))
    objects = [
        {"text": "What?", "answers": [{"answer": a} for a in row["answers"]]} for row in each
    ]
    (root / "objects.json").write_text(json.dumps(objects))
    columns = [{"question": "What?", "answer": list(answers)} for _, answers, _ in rows[:2]]
    (root / "several.jsonl").write_text("\n".join(map(json.dumps, columns)))
    for name in ("answers.csv", "answers.json", "objects.json", "several.jsonl"):
        task = read_own(root, OwnTask(name, name, "vqa"))
        count = len(task.train)
        assert [(s.answers, s.answer) for s in task.train] == [r[1:] for r in rows][:count], name
        targets = [target_of(sample) for sample in task.test]
        assert [each.references for each in targets] == [r[1] for r in rows][:count]
    told_once = read_own(root, OwnTask("answers.csv", "answers.csv", "vqa"))
    stored = prepared_own(root, root / "answers-out", OwnTask("answers.csv", "answers.csv", "vqa"))
    assert list(stored.train) == list(told_once.train)


def test_rows_without_ids_get_their_number(root: Path) -> None:
    (root / "bare.csv").write_text("question,answer\nWhat?,a\n\nWho?,b\n")
    task = read_own(root, OwnTask("bare.csv", "bare.csv", "exact"))
    assert [(s.id, s.text) for s in task.test] == [("0", "What?"), ("1", "Who?")]


def test_what_a_system_says_stands_before_the_first_question(root: Path) -> None:
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>What?"},
            {"role": "assistant", "content": "a"},
        ],
        "images": ["a.png"],
    }
    (root / "system.jsonl").write_text(json.dumps(row))
    (sample,) = read_own(root, OwnTask("system.jsonl", "system.jsonl", "exact")).train
    assert sample.turns == ((None, "Be brief.\nWhat?"), ("a",))


def test_the_format_of_each_file_is_said_once(root: Path) -> None:
    write_all(root, ROWS)
    (root / "more.csv").write_text("question,answer,colour\nWhat?,a,red\n")
    said: list[str] = []
    data = DataConfig(root=str(root), own={"Mine": OwnTask("more.csv", "saved", "exact")})
    read_tasks(data, 0, say=said.append)
    assert said == [
        "Mine/train: table (CSV), 1 rows; not read: colour",
        "Mine/test: table (datasets), 3 rows; not read: about",
    ]


@pytest.mark.parametrize("scorer", ["box", "iou"])
def test_boxes_follow_from_the_scorer(root: Path, scorer: str) -> None:
    """Not from the task's name; a picture's own size is known where the row has none."""
    (root / "boxes.csv").write_text('question,answer,image\nWhere?,"[4, 3, 20, 15]",a.png\n')
    own = OwnTask("boxes.csv", "boxes.csv", scorer)
    for task in (read_own(root, own), prepared_own(root, root / f"out-{scorer}", own)):
        assert task.train[0].size == task.test[0].size == (40, 30)
    (root / "boxes.csv").write_text("question,answer,image\nWhere?,there,a.png\n")
    with pytest.raises(DataError, match=r"boxes\.csv, row 0, line 2: answer must be a box"):
        read_own(root, own)
    assert read_own(root, OwnTask("boxes.csv", "boxes.csv", "exact")).train[0].answer == "there"
