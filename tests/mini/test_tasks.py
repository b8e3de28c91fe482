"""The generated tasks: CoIN's schema, determinism, balance, boxes, and shared questions."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmoe.data.settings import TASKS
from cmoe.mini.drawing import COLORS, SHAPES, WORDS
from cmoe.mini.tasks import make_sample, write_mini_coin

COIN_ORDER = (
    ("ScienceQA", "test.json"),
    ("TextVQA", "val.json"),
    ("ImageNet", "test.json"),
    ("GQA", "test.json"),
    ("VizWiz", "val.json"),
    ("Grounding", "test.json"),
    ("VQAv2", "val.json"),
    ("OCRVQA", "test.json"),
)


def read(root: Path, task: str, name: str) -> list[dict[str, Any]]:
    return json.loads((root / "Instructions_Original" / task / name).read_text(encoding="utf-8"))


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coin")
    write_mini_coin(root, seed=3, train=40, test=30)
    return root


def test_tasks_are_coins_in_coins_order() -> None:
    assert tuple(name for name, _ in COIN_ORDER) == TASKS


@pytest.mark.parametrize(("task", "test_name"), COIN_ORDER)
def test_files_have_coins_schema(root: Path, task: str, test_name: str) -> None:
    names = {path.name for path in (root / "Instructions_Original" / task).iterdir()}
    assert names == {"train.json", test_name}
    train, test = read(root, task, "train.json"), read(root, task, test_name)
    assert (len(train), len(test)) == (40, 30)
    for row in train:
        human, answer = row["conversations"]
        assert (human["from"], answer["from"]) == ("human", "gpt")
        assert answer["value"]
        assert ("<image>\n" in human["value"]) == ("image" in row)
        assert set(row) - {"image"} == {"id", "conversations"}
    for row in test:
        box = {"answer_bbox", "size"} if task == "Grounding" else set()
        assert set(row) - {"image"} == {"question_id", "text", "answer"} | box
        assert "<image>" not in row["text"]
    for row in (*train, *test):
        if "image" in row:
            with Image.open(root / row["image"]) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (48, 48))
    ids = [row["id"] for row in train] + [row["question_id"] for row in test]
    assert len(set(ids)) == len(ids)


def test_only_science_qa_has_text_alone(root: Path) -> None:
    alone = {
        task for task, name in COIN_ORDER for row in read(root, task, name) if "image" not in row
    }
    assert alone <= {"ScienceQA"}
    rows = [make_sample("ScienceQA", "train", index) for index in range(400)]
    assert 0.05 < sum(row.image is None for row in rows) / len(rows) < 0.15


def test_same_seed_same_bytes_other_seed_other_bytes(root: Path, tmp_path: Path) -> None:
    write_mini_coin(tmp_path / "same", seed=3, train=40, test=30)
    write_mini_coin(tmp_path / "other", seed=4, train=40, test=30)
    assert tree(tmp_path / "same") == tree(root)
    assert tree(tmp_path / "other") != tree(root)


def test_a_shorter_split_begins_a_longer_one(root: Path, tmp_path: Path) -> None:
    write_mini_coin(tmp_path, seed=3, train=7, test=5)
    for task, name in COIN_ORDER:
        assert read(tmp_path, task, "train.json") == read(root, task, "train.json")[:7]
        assert read(tmp_path, task, name) == read(root, task, name)[:5]
    files = tree(root)
    assert all(files[p] == data for p, data in tree(tmp_path).items() if p.endswith(".png"))


@pytest.mark.parametrize("task", TASKS)
def test_train_and_test_share_no_picture(task: str) -> None:
    def pictures(split: str) -> set[bytes]:
        samples = (make_sample(task, split, index) for index in range(300))
        return {sample.image.tobytes() for sample in samples if sample.image is not None}

    assert not pictures("train") & pictures("test")


@pytest.mark.parametrize("task", TASKS)
def test_no_answer_prevails(task: str) -> None:
    answers = Counter(make_sample(task, "train", index).answer for index in range(1000))
    assert answers.most_common(1)[0][1] < 420
    if task in ("GQA", "VQAv2", "OCRVQA"):
        assert 0.8 < answers["yes"] / answers["no"] < 1.25
    if task == "ScienceQA":
        assert set(answers) == {"A", "B", "C"}
        assert min(answers.values()) > 280


def test_boxes_are_those_of_the_described_object() -> None:
    """The pixels nearest to the described color span the box that the answer gives."""
    palette = np.array([*COLORS.values(), (250, 250, 250)], np.float32)
    checked = 0
    for index in range(300):
        sample = make_sample("Grounding", "test", index)
        assert sample.box is not None
        assert sample.image is not None
        left, top, right, bottom = sample.box
        assert 0 <= left < right <= 48
        assert 0 <= top < bottom <= 48
        read_back = [float(number) for number in sample.answer.strip("[]").split(",")]
        assert np.allclose(read_back, np.array(sample.box) / 48, atol=0.005)
        color = next((name for name in COLORS if f"the {name} " in sample.text), None)
        if color is None:
            continue
        distance = np.abs(sample.image[:, :, None].astype(np.float32) - palette).sum(-1)
        ys, xs = np.nonzero(distance.argmin(-1) == list(COLORS).index(color))
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == pytest.approx(sample.box, abs=1)
        checked += 1
    assert checked > 100


def test_pictures_show_listed_words_only() -> None:
    for task in ("TextVQA", "OCRVQA"):
        for index in range(500):
            answer = make_sample(task, "train", index).answer
            assert not answer.isupper() or answer in WORDS
    assert all(re.fullmatch("[A-Z]{3,4}", word) for word in WORDS)


def test_vqa_answers_are_short_words() -> None:
    for index in range(300):
        sample = make_sample("VQAv2", "train", index)
        assert sample.answer in {"yes", "no", *"01234", *COLORS, *SHAPES}


def test_a_bag_of_words_does_not_tell_the_task() -> None:
    """Naive Bayes on the words of a question: far above chance, far below what pictures allow."""

    def words(task: str, split: str, index: int) -> set[str]:
        return set(re.findall(r"[a-z0-9']+", make_sample(task, split, index).text.lower()))

    counts = [Counter(w for i in range(500) for w in words(task, "train", i)) for task in TASKS]
    vocabulary = set().union(*counts)

    def score(count: Counter[str], seen: set[str]) -> float:
        shares = {word: (count[word] + 1) / 502 for word in vocabulary}
        return sum(math.log(p if word in seen else 1 - p) for word, p in shares.items())

    right = [
        max(range(len(TASKS)), key=lambda k: score(counts[k], words(task, "test", i))) == number
        for number, task in enumerate(TASKS)
        for i in range(60)
    ]
    assert 0.5 < sum(right) / len(right) < 0.85
