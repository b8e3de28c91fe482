"""Grounding's answers are boxes in their pictures, by one rule for all that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cmoe.common.errors import DataError
from cmoe.data.boxes import fractions, numbers, read_answer
from cmoe.data.coin import read_tasks
from cmoe.data.prepare import prepare
from cmoe.data.row_rules import BaseRule
from cmoe.data.samples import Task
from cmoe.data.settings import DataConfig
from cmoe.data.survey import Preparation, survey
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.evaluation.targets import stream_targets
from cmoe.tasks.answer_files import read_targets
from cmoe.tasks.registry import score

WIDTH, HEIGHT = 40, 30


def write(root: Path, answer: str, split: str = "test", **more: Any) -> Path:
    """Grounding with one training and one test row, of which one has this answer."""
    folder = root / "Instructions_Original" / "Grounding"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "a.png")
    fine = "[0.1, 0.1, 0.4, 0.4]"
    answers = {"train": fine, "test": fine, split: answer}
    row = {"image": "a.png", "text": "Where?"}
    turns = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": answers["train"]}]
    train = {"id": "r", "image": "a.png", "conversations": turns}
    test = row | {"question_id": "r", "answer": answers["test"]}
    for name, content in (("train", train), ("test", test)):
        content |= more if name == split else {}
        (folder / f"{name}.json").write_text(json.dumps([content]))
    return folder / f"{split}.json"


def read(root: Path | str) -> Task:
    config = DataConfig(root=str(root), tasks=("Grounding",))
    return read_tasks(config, seed=0, base=BaseRule())[0]


def prepared(root: Path) -> str:
    job = Preparation(root, ".", ("Grounding",), str(root / "out"))
    found = survey(job, map, keep=False)
    assert not found.problems
    prepare(job, found, map)
    return job.out


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("answer", "more", "cause"),
    [
        ("left", {}, "must be a box of four numbers"),
        ("[0.1, 0.2, 0.3]", {}, "must be a box of four numbers"),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", {}, "must be a box of four numbers"),
        ("0.1 0.2 0.3 0.4", {}, "must be a box of four numbers"),
        ("The box is [0.1, 0.2, 0.3, 0.4]", {}, "must be a box of four numbers"),
        ("[nan, 0, 1, 1]", {}, "must be a box of four numbers"),
        ("[0.4, 0.1, 0.3, 0.4]", {}, "corners are swapped"),
        ("[0.1, 0.4, 0.3, 0.1]", {}, "corners are swapped"),
        ("[0.1, 0.1, 1.3, 0.4]", {}, "leaves its picture of 1 x 1"),
        ("[-0.1, 0.1, 0.3, 0.4]", {}, "leaves its picture of 1 x 1"),
        ("[0, 0, 1e999, 1]", {}, "leaves its picture"),
        ("[0, 0, 41, 30]", {}, "leaves its picture of 40 x 30"),
        ("[0, 0, 40, 31]", {}, "leaves its picture of 40 x 30"),
        ("[0, 0, 801, 600]", {"size": [800, 600]}, "leaves its picture of 800 x 600"),
        ("[0, 0, 20, 20]", {"size": [30, 40]}, "size is [30, 40], but the picture is 40 x 30"),
        ("[0, 0, 20, 20]", {"size": [800, 800]}, "of other proportions"),
        ("[0, 0, 20, 20]", {"image": None}, "is a box in pixels, and the row has no size"),
    ],
)
def test_an_answer_that_is_no_box_in_its_picture_is_named(
    tmp_path: Path, split: str, answer: str, more: dict[str, Any], cause: str
) -> None:
    file = write(tmp_path, answer, split, **more)
    with pytest.raises(DataError) as refused:
        read(tmp_path)
    message = str(refused.value)
    assert message.startswith(f"{file}, row 0: ")
    assert cause in message
    assert message.endswith("(id 'r')")
    job = Preparation(tmp_path, ".", ("Grounding",), "")
    assert survey(job, map, keep=False).problems == [message]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("answer", "stated", "size"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", None, None),
        ("[0, 0, 1, 1]", None, None),
        ("0.1,0.2,.3,4e-1", None, None),
        ("[0.5, 0.2, 0.5, 0.4]", None, None),  # rounded to nothing, as COCO's smallest are
        ("[4, 3, 20, 30]", None, (WIDTH, HEIGHT)),
        ("[4, 3, 20, 30]", [WIDTH, HEIGHT], (WIDTH, HEIGHT)),
        ("[80, 60, 400, 600]", [800, 600], (800, 600)),  # the original's, made smaller since
        ("[80, 60, 400, 599]", [801, 600], (801, 600)),
        ("[0.1, 0.2, 0.3, 0.4]", [476, 305], (476, 305)),  # without a use here
    ],
)
def test_a_box_in_pixels_has_its_pictures_size(
    tmp_path: Path, split: str, answer: str, stated: Any, size: Any
) -> None:
    more = {} if stated is None else {"size": stated}
    write(tmp_path, answer, split, **more)
    for root in (tmp_path, prepared(tmp_path)):
        task = read(root)
        (sample,) = task.train if split == "train" else task.test
        assert (sample.answer, sample.size) == (answer, size)
        if split == "test":
            data = DataConfig(root=str(root), tasks=("Grounding",))
            targets = stream_targets([task], data, EvaluationConfig())["Grounding"]
            assert targets["r"].size == size
            box = read_answer(answer)
            area = (box[2] - box[0]) * (box[3] - box[1])
            assert score("Grounding", "strict", [answer], [targets["r"]]) == [float(area > 0)]


def test_prepared_boxes_are_held_to_the_rule_when_a_run_starts(tmp_path: Path) -> None:
    """Those of an older version may lack a size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path, "[4, 3, 20, 30]")
    out = prepared(tmp_path)
    (shard,) = (Path(out) / "rows").glob("Grounding-test-*")
    rows = pq.read_table(shard)
    values = [row | {"size": None} for row in rows.to_pylist()]
    pq.write_table(pa.Table.from_pylist(values, schema=rows.schema), shard)
    with pytest.raises(DataError, match=r"Grounding-test-.*, row 0: .* has no size.*\(id 'r'\)"):
        read(out)


def test_the_box_that_is_scored_is_the_samples_answer(tmp_path: Path) -> None:
    """CoIN scores `answer_bbox`; another box in `answer` contradicts it."""
    file = write(tmp_path, "the left one", answer_bbox="[0.1, 0.2, 0.3, 0.4]")
    assert read(tmp_path).test[0].answer == "[0.1, 0.2, 0.3, 0.4]"
    assert read_targets("Grounding", file)["r"].answer == "[0.1, 0.2, 0.3, 0.4]"
    write(tmp_path, "[0.6, 0.6, 0.9, 0.9]", answer_bbox="[0.1, 0.2, 0.3, 0.4]")
    with pytest.raises(DataError, match="and answer is another box"):
        read(tmp_path)
    row = json.loads(file.read_text())[0] | {"answer": None}
    file.write_text(json.dumps([row]))
    assert read(tmp_path).test[0].answer == "[0.1, 0.2, 0.3, 0.4]"


def test_an_answer_file_is_held_to_the_same_rule(tmp_path: Path) -> None:
    for answer, more, cause in (
        ("[4, 3, 20, 30]", {}, "the row has no size"),
        ("[0.4, 0.1, 0.3, 0.4]", {}, "corners are swapped"),
        ("[0, 0, 41, 30]", {"size": [40, 30]}, "leaves its picture of 40 x 30"),
    ):
        file = write(tmp_path, answer, **more)
        with pytest.raises(DataError, match=cause) as refused:
            read_targets("Grounding", file)
        assert str(refused.value).startswith(f"{file}, row 0: ")
    file = write(tmp_path, "[4, 3, 20, 30]", size=[40, 30])
    assert read_targets("Grounding", file)["r"].size == (40, 30)


@given(st.lists(st.integers(0, 999), min_size=4, max_size=4), st.sampled_from(["[{}]", "{}"]))
def test_what_is_taken_for_a_box_is_scored_as_one(parts: list[int], form: str) -> None:
    """Whatever passes is a box to both scorers: none is left to fail behind the work."""
    text = form.format(", ".join(map(str, parts)))
    box = read_answer(text)
    assert box == numbers(text) == tuple(parts)
    assert fractions(text, (1000, 1000)) is not None
