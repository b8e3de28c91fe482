"""Rows of any shape are read or refused, by all readers alike, and never end in another error.

`CMOE_FUZZ=20000` tries that many files instead of a few hundred.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cmoe.common.errors import DataError
from cmoe.data.coin import count_rows, read_tasks
from cmoe.data.formats.coin_rows import KEYS, METADATA
from cmoe.data.prepare import prepare
from cmoe.data.row_rules import BaseRule
from cmoe.data.samples import Sample, StoredPicture
from cmoe.data.settings import DataConfig
from cmoe.data.survey import Preparation, survey
from cmoe.tasks.answer_files import read_predictions, read_targets

FUZZ = int(os.environ.get("CMOE_FUZZ", "300"))
TOKENS = ("<s>", "</s>", "<pad>", "<image>")
BASE = BaseRule(TOKENS)

awkward = st.sampled_from(
    [
        "", " ", "<image>", "<image>\nWhat?", "a<image>b", "<s>", "\ud800", "\udfff\ud800", "nul\0",
        "a.png", "gone.png", "pipe", "..", ".", "/", "../a.png", "a.png/x", "x" * 300, "y/" * 2100,
        "[0, 0, 1, 1]", "[0, 0, 20, 20]", "[9, 9, 1, 1]", "[0.1,0.2,0.3", "human", "gpt", "\u2028",
        "id", "question_id", "text", "yes", "1", "\u200b", "[1e999, 0, 0, 0]", "\x1b[2J",
    ]
)  # fmt: skip
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400]),
    st.floats(),
    st.text(max_size=12),
    st.text(st.characters(), max_size=6),
    awkward,
)
keys = st.one_of(
    st.sampled_from([*KEYS, *METADATA, "from", "value", "images"]), st.text(max_size=4)
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=8,
)

TRAIN = {
    "id": 1,
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhere?"},
        {"from": "gpt", "value": "[0.1, 0.1, 0.4, 0.4]"},
        {"from": "human", "value": "And?"},
        {"from": "gpt", "value": "no"},
    ],
}
TEST = {"question_id": 1, "image": "a.png", "text": "Where?", "answer": "[0.1, 0.1, 0.4, 0.4]"}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of everything within a value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@st.composite
def spoiled(draw: st.DrawFn, good: dict[str, Any]) -> Any:
    """A good row with something else in some of its places, or more in it, or less."""
    row: Any = deepcopy(good)
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from(list(places(row))))
        if not path:
            row = draw(st.one_of(values, st.just(row)))
            continue
        *way, last = path
        within = row
        for key in way:
            within = within[key]
        match draw(st.sampled_from(["change", "drop", "repeat", "swap"])):
            case "change":
                within[last] = draw(values)
            case "drop":
                within.pop(last)
            case "repeat" if isinstance(within, list):
                within.insert(last, deepcopy(within[last]))
            case _:
                within[last] = draw(awkward)
    if isinstance(row, dict) and draw(st.booleans()):
        row |= draw(st.dictionaries(keys, values, max_size=2))
    return row


def rows_of(good: dict[str, Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.one_of(spoiled(good), values, st.just(good)), max_size=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    for task in ("GQA", "Grounding"):
        (root / "Instructions_Original" / task).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(root / "a.png")
    os.mkfifo(root / "pipe")
    return root


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or the words in which it refuses; any other error is a failure."""
    try:
        return call()
    except DataError as error:
        message = str(error)
        assert len(message) < 20_000, "an error is read by people"
        return message


def written(rows: Any) -> bytes:
    return json.dumps(rows).encode()


@settings(
    max_examples=FUZZ, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["GQA", "Grounding"]),
    rows_of(TRAIN).map(written),
    st.one_of(rows_of(TEST).map(written), values.map(written), st.binary(max_size=40)),
)
def test_any_rows_are_read_or_refused_by_all_readers_alike(
    root: Path, task: str, train: bytes, test: bytes
) -> None:
    folder = root / "Instructions_Original" / task
    (folder / "train.json").write_bytes(train)
    (folder / "test.json").write_bytes(test)
    config = DataConfig(root=str(root), tasks=(task,))
    reading = outcome(lambda: read_tasks(config, 0, base=BASE)[0])
    found = survey(Preparation(root, ".", (task,), "", BASE), map, keep=False)
    assert isinstance(reading, str) == bool(found.problems), (reading, found.problems)
    if isinstance(reading, str) and "picture" not in reading:
        assert reading in found.problems, "the first that reading refuses is among all"
    planned = outcome(lambda: [count_rows(config, task, s, lambda: BASE) for s in SPLITS])
    if not isinstance(reading, str):
        assert planned == [len(reading.train), len(reading.test)]
    outcome(lambda: read_targets(task, folder / "test.json"))
    outcome(lambda: read_predictions(folder / "test.json"))


SPLITS = ("train", "test")


@settings(max_examples=max(10, FUZZ // 100), deadline=None)
@given(
    st.sampled_from(["GQA", "Grounding"]),
    st.lists(spoiled(TRAIN), min_size=4, max_size=12),
    st.lists(spoiled(TEST), min_size=4, max_size=12),
)
def test_prepared_rows_say_what_their_json_says(
    tmp_path_factory: pytest.TempPathFactory,
    root: Path,
    task: str,
    train: list[Any],
    test: list[Any],
) -> None:
    """The rows that are usable, read as JSON and as Parquet."""
    folder = root / "Instructions_Original" / task

    def usable(split: str, rows: list[Any], good: dict[str, Any]) -> list[Any]:
        kept = [good]
        for row in rows:
            if isinstance(row, dict) and split == "test":
                row = row | {"question_id": f"row {len(kept)}"}
                row.pop("id", None)
            (folder / f"{split}.json").write_text(json.dumps([row]))
            one = DataConfig(root=str(root), tasks=(task,))
            if not isinstance(outcome(lambda c=one: read_tasks(c, 0, base=BASE)), str):
                kept.append(row)
        (folder / f"{split}.json").write_text(json.dumps(kept))
        return kept

    (folder / "test.json").write_text(json.dumps([TEST]))
    usable("train", train, TRAIN)
    usable("test", test, TEST)
    out = tmp_path_factory.mktemp("out")
    job = Preparation(root, ".", (task,), str(out), BASE)
    found = survey(job, map, keep=False)
    assert not found.problems
    prepare(job, found, map)
    (mine,), (theirs,) = (
        read_tasks(DataConfig(root=str(place), tasks=(task,)), 0, base=BASE)
        for place in (root, out)
    )
    assert list(map(content, mine.train)) == list(map(content, theirs.train))
    assert list(map(content, mine.test)) == list(map(content, theirs.test))


def content(sample: Sample) -> tuple[Any, ...]:
    image = next(iter(sample.images), None)
    shown = None
    if image is not None:
        with image.open("rb") as file:
            shown = file.read()
    assert image is None or isinstance(image, Path | StoredPicture)
    return sample.id, sample.text, sample.answer, sample.further, sample.size, shown


def test_refusing_leaves_nothing_behind(root: Path) -> None:
    """A million rows' refusals must not be a million rows' memory."""
    folder = root / "Instructions_Original" / "GQA"
    (folder / "train.json").write_text(json.dumps([TRAIN]))
    (folder / "test.json").write_text(json.dumps([TEST, 3]))
    config = DataConfig(root=str(root), tasks=("GQA",))

    def refused(times: int) -> int:
        for _ in range(times):
            assert isinstance(outcome(lambda: read_tasks(config, 0)), str)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = refused(50)
    assert refused(500) - before < 8 * 1024, "kilobytes"
