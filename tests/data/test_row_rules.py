"""One rule decides whether a row can be used, whoever reads it; what can't be is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.paths import ROOT
from support.rows import BASE, TOKENS, Row, asked, problems, read, refusal, talk, write

from cmoe.common.errors import DataError
from cmoe.data.batches import ChatTurn, Collator, ReservedTokenError
from cmoe.data.coin import read_tasks
from cmoe.data.prepare import prepare
from cmoe.data.row_rules import BaseRule
from cmoe.data.samples import Sample
from cmoe.data.settings import DataConfig
from cmoe.data.survey import Preparation, survey
from cmoe.data.texts import reserved_tokens
from cmoe.modeling.pretrained import load_processor
from cmoe.modeling.settings import MINI_BASE
from cmoe.tasks.answer_files import read_targets

COIN_REAL = next(ROOT.parent.glob("*/data/coin_real"), Path("coin_real"))


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(str(MINI_BASE))


# The base's own tokens


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("place", ["question", "answer", "later question", "later answer"])
def test_the_bases_own_tokens_are_no_text_of_a_training_row(
    tmp_path: Path, token: str, place: str
) -> None:
    places = ("question", "answer", "later question", "later answer")
    texts = ["<image>\nWhat?", "yes", "And now?", "no"]
    at = places.index(place)
    texts[at] += f" it's {token}, isn't it"
    message = refusal(tmp_path, "train", talk(*texts))
    assert repr(token) in message
    assert f"conversations[{at}].value" in message
    assert "(id '7')" in message


@pytest.mark.parametrize("field", ["text", "answer"])
def test_the_bases_own_tokens_are_no_text_of_a_test_row(tmp_path: Path, field: str) -> None:
    message = refusal(tmp_path, "test", asked(**{field: "a</s>b"}))
    assert message == f"{field} holds '</s>', which is a token of the model's own (id '7')"


def test_what_a_processor_treats_as_its_own_is_reserved(processor: Any) -> None:
    assert set(reserved_tokens(processor)) == set(TOKENS)
    added = [
        SimpleNamespace(content=content, special=special)
        for content, special in (
            ("<|im_end|>", True),
            ("<tool_call>", False),
            ("  ", False),
            ("word", False),
        )
    ]
    other = SimpleNamespace(
        image_token="<|image_pad|>",
        fake_image_token=SimpleNamespace(__str__=None),
        add_bos_token=True,
        image_token_id=5,
        chat_template="{{ '<tool_call>' }}  text",
        tokenizer=SimpleNamespace(
            all_special_tokens=["<|endoftext|>"],
            added_tokens_decoder=dict(enumerate(added)),
            chat_template=None,
            add_eos_token=True,
        ),
    )
    del other.fake_image_token
    assert reserved_tokens(other) == ("<tool_call>", "<|endoftext|>", "<|im_end|>", "<|image_pad|>")


def test_a_chat_is_held_to_the_rule_of_rows(processor: Any, tmp_path: Path) -> None:
    collator = Collator(processor, 512, 16)
    for text in ("a<pad>", "half \ud800", "nul \0"):
        with pytest.raises(ReservedTokenError) as chat:
            collator.conversation([ChatTurn("user", (text,))])
        message = refusal(tmp_path, "test", asked(text=text))
        assert str(chat.value).removeprefix("the text ") in message


def test_prepared_data_is_held_to_this_base(tmp_path: Path) -> None:
    """It may have been prepared for a base that reads the same text as text."""
    write(tmp_path, "train", [talk("Is <|im_start|> a tag?", "yes", id=n) for n in range(3)])
    out = str(tmp_path / "out")
    job = Preparation(tmp_path, ".", ("GQA",), out, BASE)
    prepare(job, survey(job, map, keep=False), map)
    config = DataConfig(root=out, tasks=("GQA",))
    read_tasks(config, 0, base=BASE)
    with pytest.raises(DataError, match=r"rows/GQA-train-00000-\w+\.parquet, row 0: text holds"):
        read_tasks(config, 0, base=BaseRule(("<|im_start|>",)))
    read_tasks(config, 0)  # workers don't look again


# A picture's place


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (talk("<image>\nWhat?", "yes", image=None), "holds '<image>', and the row has no image"),
        (talk("<image>\n<image>\nWhat?", "yes"), "2 in all, and the row's images are 1"),
        (talk("<image>\nWhat?", "yes", image=["a.png", "a.png"]), "1 in all, and the row's"),
        (talk("<image>\nWhat?", "yes", "A?", "no", "B <image>", "no"), "2 in all, and the row"),
        (talk("What?", "yes <image>"), "conversations[1].value holds '<image>', which stands for"),
        (talk("<image>", "yes"), "the question not empty"),
        (talk("<image>\n", "yes"), "the question not empty"),
    ],
)
def test_every_image_has_its_place_or_none_says_one(tmp_path: Path, row: Row, cause: str) -> None:
    assert cause in refusal(tmp_path, "train", row)


@pytest.mark.parametrize(
    "text",
    ["<image>\nWhat?", "What?\n<image>", "<image> What?", "What? <image>", " <image>\nWhat?"],
)
def test_a_placeholder_may_stand_as_llava_writes_it(tmp_path: Path, text: str) -> None:
    write(tmp_path, "train", [talk(text, "yes")])
    assert read(tmp_path).train[0].text == "What?"
    write(tmp_path, "train", [talk("One.\n<image>\nWhat?", "yes")])
    assert read(tmp_path).train[0].text == "One.\n\nWhat?"
    write(tmp_path, "test", [asked(text=text)])
    assert read(tmp_path).test[0].text == "What?"


# Contradictions and unknown keys


@pytest.mark.parametrize(
    ("split", "row", "cause"),
    [
        ("train", talk("What?", "yes", images=["a.png"]), "unknown key 'images'; "),
        ("train", talk("What?", "yes", images=["a.png"]), "the nearest is image "),
        ("train", talk("What?", "yes", conversation=[]), "the nearest is conversations "),
        ("train", talk("What?", "yes", Image="a.png"), "the nearest is image "),
        ("train", talk("What?", "yes", video="a.mp4"), "unknown key 'video'; there are id, "),
        ("train", talk("What?", "yes", question_id=8), "question_id is '8', and id is 7"),
        ("train", talk("What?", "yes", text="What?"), "both conversations and text"),
        ("train", talk("What?", "yes", answer="no"), "both conversations and answer"),
        (
            "train",
            talk("What?", "yes", answer_bbox="[0, 0, 1, 1]"),
            "both conversations and answer",
        ),
        (
            "train",
            {"id": 7, "conversations": [{"from": "human", "value": "a", "valeu": "b"}, {}]},
            "by turns",
        ),
        (
            "train",
            {
                "id": 7,
                "conversations": [
                    {"from": "human", "value": "a", "images": "b"},
                    {"from": "gpt", "value": "a"},
                ],
            },
            "conversations[0]: unknown key 'images'; there are from, value",
        ),
        ("test", asked(id=8), "question_id is '7', and id is 8"),
        ("test", asked(answers=["yes"]), "the nearest is answer "),
        ("test", asked(question="What?"), "the nearest is question_id "),
        ("test", asked(answer_bbox="[0, 0, 1, 1]"), "answer_bbox belongs to Grounding"),
        ("test", talk("What?", "yes", question_id=7), "conversations belongs to training"),
        ("test", {"id": 7, "text": "What?", "answer": "yes"}, "question_id must be a whole number"),
    ],
)
def test_a_contradiction_or_an_unknown_key_is_refused(
    tmp_path: Path, split: str, row: Row, cause: str
) -> None:
    assert cause in refusal(tmp_path, split, row)


def test_what_public_files_say_beside_is_passed_over(tmp_path: Path) -> None:
    more = {"model": "gpt-4", "metadata": {"images": 3}, "category": None, "source": "x"}
    write(tmp_path, "train", [talk("What?", "yes", question_id="7", **more)])
    assert read(tmp_path).train == (Sample("7", "What?", "yes", (tmp_path / "a.png",)),)
    write(tmp_path, "test", [asked(id="7", question_type="other", **more)])
    assert read(tmp_path).test == (Sample("7", "What?", "yes", (tmp_path / "a.png",)),)


def test_scoring_refuses_the_rows_that_reading_refuses(tmp_path: Path) -> None:
    for row, cause in (
        (asked(images=["a.png"]), "unknown key 'images'"),
        (asked(text="<image>\nWhat?", image=None), "the row has no image"),
        (asked(answer=""), "the answer not empty"),
        (asked(text=" "), "the question not empty"),
        (asked(question_id="a\tb"), "question_id must be a whole number or text"),
    ):
        file = write(tmp_path, "test", [row])
        with pytest.raises(DataError, match=cause) as scored:
            read_targets("GQA", file)
        with pytest.raises(DataError) as reading:
            read(tmp_path)
        assert str(scored.value) == str(reading.value)


@pytest.mark.skipif(not COIN_REAL.is_dir(), reason="no folder data/coin_real beside the project")
def test_real_pictures_and_questions_pass() -> None:
    tasks = ("ScienceQA", "ImageNet", "Grounding", "VQAv2")
    config = DataConfig(root=str(COIN_REAL), images="images", tasks=tasks)
    found = read_tasks(config, 0, base=BASE, least=8)
    assert [(len(t.train), len(t.test)) for t in found] == [
        (275, 249),
        (1000, 200),
        (425, 83),
        (2475, 1933),
    ]


# Values


@pytest.mark.parametrize("bad", [1.0, True, False, [1], {}, "", "  ", "a\nb", "\u200b", "\ud800"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_id_is_a_whole_number_or_text(tmp_path: Path, split: str, bad: Any) -> None:
    key = "id" if split == "train" else "question_id"
    row = talk("What?", "yes") if split == "train" else asked()
    message = refusal(tmp_path, split, row | {key: bad})
    assert message.startswith(f"{key} must be a whole number or text that isn't blank, this is ")


def test_training_rows_may_share_an_id_and_test_rows_may_not(tmp_path: Path) -> None:
    """LLaVA's `id` is the picture's."""
    write(tmp_path, "train", [talk(f"What {n}?", "yes", id="000000033471") for n in range(4)])
    assert [s.id for s in read(tmp_path).train] == ["000000033471"] * 4
    assert problems(tmp_path) == []
    file = write(tmp_path, "test", [asked(), asked(question_id="7")])
    twice = f"{file}, row 1: id '7' is row 0's already; no id of a test stands twice"
    with pytest.raises(DataError, match="stands twice"):
        read(tmp_path)
    assert problems(tmp_path) == [twice]
    with pytest.raises(DataError, match=r"'7' .* twice"):
        read_targets("GQA", file)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_selection_of_rows_that_share_an_id_is_told_apart(tmp_path: Path, prepared: bool) -> None:
    """Answers are kept by the ids of what is asked."""
    rows = [talk(f"What {n}?", "yes", id="picture") for n in range(11)]
    write(tmp_path, "train", [*rows, talk("Which?", "yes", id="picture#2")])
    root = str(tmp_path)
    if prepared:
        root = str(tmp_path / "out")
        job = Preparation(tmp_path, ".", ("GQA",), root)
        prepare(job, survey(job, map, keep=False), map)
    config = DataConfig(root=root, tasks=("GQA",), selection=0.8, evaluate_on="selection")
    (task,) = read_tasks(config, seed=1)
    ids = [sample.id for sample in task.test]
    assert len(set(ids)) == len(ids) == 10
    assert len({sample.text for sample in task.test}) == 10
    assert ids.count("picture") == 1
    assert [s.id for s in read_tasks(config, seed=1)[0].test] == ids


@pytest.mark.parametrize("field", ["text", "answer", "image", "question_id"])
@pytest.mark.parametrize("bad", ["half \ud800 pair", "tail \udfff", "nul\0byte"])
def test_text_that_cannot_be_stored_is_refused_in_every_field(
    tmp_path: Path, field: str, bad: str
) -> None:
    assert field in refusal(tmp_path, "test", asked(**{field: bad}))


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u00a0", "\u200b\u200b", "\x01\x02", "\u2028"])
@pytest.mark.parametrize("field", ["text", "answer"])
def test_what_shows_nothing_is_empty(tmp_path: Path, field: str, blank: str) -> None:
    assert f"not empty; {field} is " in refusal(tmp_path, "test", asked(**{field: blank}))


@pytest.mark.parametrize("text", ["é", "日本", "👍🏽", "a\u200db", "\ufeffyes"])
def test_text_of_any_script_is_text(tmp_path: Path, text: str) -> None:
    write(tmp_path, "test", [asked(text=text, answer=text)])
    assert read(tmp_path).test[0].answer == text


@pytest.mark.parametrize(
    "size", [[0, 4], [-1, 4], [True, 4], [4.0, 4], [4, 4, 4], "4x4", {"w": 4}, [2**31, 4]]
)
def test_a_size_is_two_whole_numbers(tmp_path: Path, size: Any) -> None:
    assert "size must be width and height" in refusal(tmp_path, "test", asked(size=size))
