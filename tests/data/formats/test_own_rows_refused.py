"""What can't be read of a user's own task is named: its file, its row, and what would be right."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.own_files import BASE, prepared_own, read_own, write_all, write_pictures

from cmoe.common.errors import DataError
from cmoe.data.coin import count_rows, read_tasks
from cmoe.data.row_rules import BaseRule
from cmoe.data.settings import DataConfig, OwnTask
from cmoe.data.survey import Preparation, survey
from cmoe.modeling.settings import ModelConfig
from cmoe.tasks.base_rule import base_rule

FUZZ = int(os.environ.get("CMOE_FUZZ", "300"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    write_pictures(root)
    return root


def asks(*content: Any, **more: Any) -> Any:
    turns = [{"role": ("user", "assistant")[n % 2], "content": c} for n, c in enumerate(content)]
    return {"messages": turns} | more


GOOD = asks("What?", "a")
TALK = {"conversations": [{"from": "user", "value": "What?"}, {"from": "gpt", "value": "a"}]}


def image(url: str) -> Any:
    return asks([{"type": "image_url", "image_url": {"url": url}}], "a")


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (3, "an object is needed, this is int"),
        ({}, "has no messages, as the first row has"),
        (TALK, "a row of the format conversations, and the first is of messages"),
        (GOOD | {"messages": []}, "messages must be a list of turns"),
        (GOOD | {"imagse": []}, "unknown key 'imagse'; "),
        (GOOD | {"text": "?"}, "both messages and text"),
        (GOOD | {"image": "a.png", "images": []}, "both image and images"),
        (asks("What?"), "must end with a turn of the assistant"),
        (asks("What?", "a", "And?"), "must end with a turn of the assistant"),
        (asks("What?", "a") | {"messages": GOOD["messages"][::-1]}, "messages[0] is a turn of"),
        ({"messages": [{"role": "tool", "content": "?"}]}, "messages[0].role is 'tool'; there are"),
        ({"messages": [{"role": "usr", "content": "?"}]}, "the nearest is user"),
        ({"messages": [{"content": "?"}]}, "messages[0] must be from and value, or role and"),
        ({"messages": [{"role": "user", "content": "?", "x": 1}]}, "messages[0]: unknown key 'x'"),
        (asks(3, "a"), "messages[0].content must be text, this is 3"),
        (asks("What?", None), "messages[1].content must be text, this is None"),
        (asks("What?", ""), "the answer not empty"),
        (asks("What?", "</s>"), "holds '</s>'"),
        (asks([{"type": "audio"}], "a"), "messages[0].content[0] must be a part with type text, "),
        (asks("What?", [{"type": "image"}]), "messages[1].content[0].image: an answer is text"),
        (asks("<image>?", "a"), "and the row has no image"),
        (asks("<image><image>?", "a", images=["a.png"]), "2 in all, and the row's images are 1"),
        (asks("?<image>", "a", images=["gone.png"]), "gone.png is missing"),
        (asks("?", "a", images=["../a.png"]), "image must be a path below data.images"),
        (image("https://example.com/a.png"), "nothing is fetched from the web; save it below"),
        (image("file:///etc/passwd"), "image must be a path below data.images"),
        (image("file://host/a.png"), "file:///PATH is needed"),
        (image("data:image/png,abc"), "data:image/png;base64,... or another type"),
        (image("data:image/png;base64,a b"), "is a data: URL that can't be read"),
        (GOOD | {"id": [1]}, "id must be a whole number or text"),
        (GOOD | {"id": 1, "question_id": 2}, "question_id and id differ"),
        (GOOD | {"answers": ["b"]}, "answer is 'a', and answers hasn't it"),
        (GOOD | {"answers": [1]}, "answers must be texts, one at least"),
        ({"messages": [{"role": "system", "content": "</s>"}, *GOOD["messages"]]}, "holds '</s>'"),
        (
            {"messages": [GOOD["messages"][0], GOOD["messages"][1] | {"weight": 0}]},
            "messages[1].weight is 0; every answer is trained on",
        ),
    ],
)
def test_a_row_is_named_with_what_would_be_right(root: Path, row: Any, cause: str) -> None:
    (root / "bad.jsonl").write_text(json.dumps(GOOD) + "\n\n" + json.dumps(row))
    (root / "good.jsonl").write_text(json.dumps(GOOD))
    own = OwnTask("bad.jsonl", "good.jsonl", "exact")
    with pytest.raises(DataError) as refused:
        read_own(root, own)
    said = str(refused.value)
    assert said.startswith(f"{root / 'bad.jsonl'}, row 1, line 3: ")
    assert cause in said
    job = Preparation(root, ".", ("Mine",), "", BASE, own={"Mine": own})
    (problem,) = survey(job, map, keep=False).problems
    assert cause.removesuffix(" is missing") in problem, "a survey says the same"


def test_a_test_row_is_one_question(root: Path) -> None:
    (root / "long.jsonl").write_text(json.dumps(asks("?", "a", "And?", "b")))
    with pytest.raises(DataError, match="row 0, line 1: has 2 questions; a test row is one"):
        read_own(root, OwnTask("long.jsonl", "long.jsonl", "exact"))


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("a.csv", "", "line 1: the names of the columns are needed; it is empty"),
        ("a.csv", "question,answer,answer\n", "has 'answer' twice"),
        ("a.csv", "question,answer\n", "has no rows"),
        ("a.csv", "question,answr\n?,a\n", "has no column 'answer' (data.own.Mine.columns.answer)"),
        ("a.csv", "question,answr\n?,a\n", "the nearest is answr"),
        ("a.csv", "question,answer\n?,a\n?,a,b\n", "row 1, line 3: has 3 cells, and the first"),
        ("a.csv", "question,answer\n?,\n", "row 0, line 2: answer is empty"),
        ("a.csv", 'question,answer,image\n?,a,"[""a"', "image must be a list in JSON"),
        ("a.csv", 'question,answer\n?,"a', "row 0, line 2: not a row as it has to be"),
        ("a.tsv", "question\tanswers\n?\ta\n", "answers must be a list in JSON"),
        ("a.jsonl", '{"x": 1}', "of no format that is read; has x; read are conversations, "),
        ("a.jsonl", '{"messages": 1', "row 0, line 1: the line: not JSON"),
        ("a.json", "{}", "of no format that is read"),
        ("a.json", "[", "not JSON as it has to be"),
        ("a.json", "[]", "has no rows"),
        ("a.txt", "hello", "of no kind that is read: .json, .jsonl, .csv"),
        ("a.parquet", "PAR1", "can't be read as a data set"),
        ("a.csv", "\udcff", "not text in UTF-8"),
    ],
)
def test_a_file_is_named_with_what_would_be_right(
    root: Path, name: str, text: str, cause: str
) -> None:
    (root / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError) as refused:
        read_own(root, OwnTask(name, name, "exact"))
    assert name in str(refused.value)
    assert cause in str(refused.value)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("gone.json", "gone.json: can't be read: No such file"),
        ("gone.parquet", "gone.parquet: can't be read: no such file"),
        ("gone-*.parquet", "has no .parquet file"),
        ("folder", "has no .parquet file, and is no folder of `save_to_disk`"),
        ("x" * 300, "File name too long"),
        ("s3://bucket/a.json", "a path below data.root, or hf://datasets/"),
        ("hf://datasets/me/none", "which split is needed: hf://datasets/me/none?split=train"),
        ("hf://datasets/me/none?split=a&revision=b", "which split is needed"),
        ("hf://datasets/me/none@v1?split=a", "hf download --repo-type dataset me/none --revision"),
    ],
)
def test_a_file_that_is_not_there(
    root: Path, name: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "hub"))
    own = OwnTask(name, name, "exact")
    with pytest.raises(DataError) as refused:
        read_own(root, own)
    assert cause in str(refused.value)
    with pytest.raises(DataError):
        count_rows(DataConfig(root=str(root), own={"Mine": own}), "Mine", "train", BaseRule)


def test_a_data_set_of_the_hub_is_read_from_its_cache(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from support.own_files import ROWS, told

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    written = write_all(root, ROWS)
    cache = tmp_path / "datasets--me--own"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "v1").write_text("b" * 40)
    folder = cache / "snapshots" / ("b" * 40)
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.parquet").write_bytes((root / "part-0.parquet").read_bytes())
    place = "hf://datasets/me/own@v1?split="
    task = read_own(root, OwnTask(f"{place}train", f"{place}test", "exact"))
    assert list(map(told, task.train)) == list(
        map(told, read_own(root, written["llava.json"]).train)
    )
    with pytest.raises(DataError, match="Unknown split"):
        read_own(root, OwnTask(f"{place}val", f"{place}test", "exact"))
    with pytest.raises(DataError, match="a whole split is needed"):
        read_own(root, OwnTask(f"{place}train[:1]", f"{place}test", "exact"))


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from(["<image>", "a.png", "user", "gpt", "file://[", "data:,", "\ud800", "x\0"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "type", "text", "image", "image_url", "url"]
            ),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=10,
)
keys = st.sampled_from(
    ["id", "messages", "conversations", "images", "image", "question", "answer", "answers", "text"]
)


@settings(
    max_examples=FUZZ, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(json.dumps([{"messages": [{"role": [], "content": "?"}]}]).encode(), ".json")
@given(
    st.one_of(
        st.lists(st.dictionaries(keys, values), max_size=3).map(lambda v: json.dumps(v).encode()),
        st.lists(values, max_size=3).map(lambda v: json.dumps(v).encode()),
        st.text(st.sampled_from('abquestion,answer"\n\r\t[]\0'), max_size=60).map(str.encode),
        st.binary(max_size=40),
    ),
    st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ""]),
)
def test_any_file_is_read_or_refused_by_all_readers_alike(
    root: Path, content: bytes, suffix: str
) -> None:
    (root / f"fuzz{suffix}").write_bytes(content)
    own = OwnTask(f"fuzz{suffix}", f"fuzz{suffix}", "iou" if len(content) % 2 else "exact")
    config = DataConfig(root=str(root), own={"Mine": own})
    read, said = True, ""
    try:
        read_tasks(config, 0, base=BASE)
    except DataError as error:
        read, said = False, str(error)
    assert len(said) < 5000, "an error is read by people"
    job = Preparation(root, ".", ("Mine",), "", BASE, own={"Mine": own})
    assert bool(survey(job, map, keep=False).problems) == (not read)


def test_images_that_the_base_would_be_shown_elsewhere_are_refused_where_rows_are_read(
    root: Path, tmp_path: Path
) -> None:
    """From files, as they are prepared and counted, and from what was prepared for another base."""
    texts = ("Which is red?", "Is <image> like <image> here?")
    lines = "\n".join(json.dumps(asks(t, "no", images=["a.png", "b.png"])) for t in texts)
    (root / "apart.jsonl").write_text(lines)
    own, base = OwnTask("apart.jsonl", "apart.jsonl", "exact"), base_rule(ModelConfig())
    config = DataConfig(root=str(root), own={"Mine": own})
    wrong = r"row 1.*: the base's chat template doesn't show images where they stand.*\(id '1'\)"
    with pytest.raises(DataError, match=rf"apart.jsonl, {wrong}"):
        read_tasks(config, 0, base=base)
    with pytest.raises(DataError, match=wrong):
        count_rows(config, "Mine", "test", lambda: base)
    job = Preparation(root, ".", ("Mine",), "", base, own={"Mine": own})
    problems = survey(job, map, keep=False).problems
    assert [re.search(wrong, problem) is None for problem in problems] == [False, False]
    out = tmp_path / "prepared"
    prepared_own(root, out, own)
    with pytest.raises(DataError, match=rf"\.parquet, {wrong}"):
        read_tasks(DataConfig(root=str(out), own={"Mine": own}), 0, base=base)
