"""Scorers of MLLM-DCL and TriGap: examples worked out from their own scripts."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scoring import MODES

from cmoe.common.errors import DataError
from cmoe.tasks.answer_files import read_answers
from cmoe.tasks.scorer import Scorer, Target
from cmoe.tasks.scorer_registry import scorer_named
from cmoe.tasks.scoring import require_targets

NAMES = ("edit_similarity", "dcl_words", "dcl_contains", "dcl_science", "dcl_choice")
STATES = "Which states have a value above 3?"
texts = st.text(string.ascii_letters + string.digits + " .,\n", max_size=12)


def by(name: str, said: str, target: Target | str) -> float:
    """The score, which is the same in both modes."""
    scorer = scorer_named(name)
    assert isinstance(scorer, Scorer)
    target = Target(target) if isinstance(target, str) else target
    scores = {float(scorer.rule(mode)(said, target)) for mode in MODES}
    assert len(scores) == 1
    return scores.pop()


@pytest.mark.parametrize(
    ("said", "answer", "score"),
    [
        ("Blue sky", "blue sky", 1),  # the case doesn't count
        (" 12 \n", "12", 1),  # nor white space around it
        ("abcd", "abce", 3 / 4),
        ("abcd", "xyzd", 1 / 4),  # below a half, where ANLS has 0
        ("ab", "cdef", 0),
        ("a  b", "a b", 3 / 4),  # white space within it counts
        ("", "", 1),
        ("  ", "a", 0),
        ("a", " ", 0),
    ],
)
def test_edit_similarity_has_no_threshold(said: str, answer: str, score: float) -> None:
    assert by("edit_similarity", said, answer) == pytest.approx(score)


def test_the_best_of_several_answers_counts() -> None:
    assert by("edit_similarity", "abcd", Target("xyz", answers=("xyz", "abcx"))) == 3 / 4
    assert by("dcl_contains", "a dog", Target("cat", answers=("cat", "Dog"))) == 1


@pytest.mark.parametrize(
    ("said", "answer", "score"),
    [
        ("Urban area", "urban", 1),
        ("It is urban", "urban", 1),
        ("no, it is suburban", "urban", 0),  # within a word, in a text with spaces
        ("urbanity rules", "urban", 0),
        ("suburban", "urban", 1),  # within a word, in a text without spaces
        ("(suburban, rural)", "urban", 1),  # what a comma follows
        ("(suburban; rural)", "urban", 0),
        ("(suburban) or peri-urban.", "urban", 1),  # what a period follows
        ("it is preurban too", "urban", 1),  # what a space follows
        ("urban", "urban.", 1),  # the answer's periods are dropped
        ("1.5 m", "1.5", 0),  # even those within it
        ("15 m", "1.5", 1),
        ("Go straight. Slow down", "slow down", 1),  # several words stand anywhere
        ("wego straightforward", "go straight", 1),
        ("go  straight", "go straight", 0),
        ("B", "B", 1),
        ("", "B", 0),
        ("Unanswerable urban", "urban", 0),
        ("unanswerable urban", "urban", 1),
    ],
)
def test_dcl_words_needs_the_answer_beside_a_space_or_a_mark(
    said: str, answer: str, score: float
) -> None:
    assert by("dcl_words", said, answer) == score


@pytest.mark.parametrize(
    ("said", "answer", "score"),
    [
        ("Yes, the Liver", "liver", 1),
        ("delivery", "liver", 1),
        ("live r", "liver", 0),
        ("liver", "the liver", 0),
        ("liver", "liver ", 0),  # nothing is stripped
        ("Unanswerable: liver", "liver", 0),
    ],
)
def test_dcl_contains_takes_any_place(said: str, answer: str, score: float) -> None:
    assert by("dcl_contains", said, answer) == score


@pytest.mark.parametrize("picture", ["AI2D_1.png", "TQA_x_2.png", "VQA_3.jpg", "SciVerse_4.png"])
def test_dcl_science_wants_the_same_text_but_of_maps(picture: str) -> None:
    for image in (picture, f"images/{picture}", f"17 images/{picture}", f"17 {picture}"):
        target = Target("B", question=STATES, image=image)
        assert by("dcl_science", "b", target) == 1
        assert by("dcl_science", "B.", target) == 0
        assert by("dcl_science", "Unanswerable", Target("Unanswerable", image=image)) == 0


@pytest.mark.parametrize(
    ("said", "question", "answer", "score"),
    [
        ("It is Ohio.", "Name one.", "ohio", 1),
        ("Ohi", "Name one.", "ohio", 0),
        ("Ohio,Texas", STATES, "Ohio,Texas", 1),
        ("texas,ohio,Iowa", STATES, "Ohio,Texas", 1),  # more than asked for costs nothing
        ("Ohio", STATES, "Ohio,Texas", 1 / 2),
        ("Ohio, Texas", STATES, "Ohio,Texas", 1 / 2),  # a space makes another state
        ("Ohio, Texas", STATES, "Ohio, Texas", 1),
        ("Iowa", STATES, "Ohio,Texas,Utah", 0),
        ("Ohio,Texas", "which states?", "Ohio,Texas", 1),  # the case of the question counts
        ("Texas,Ohio", "which states?", "Ohio,Texas", 0),
        ("Unanswerable,Ohio", STATES, "Ohio", 0),
    ],
)
def test_dcl_science_of_maps(said: str, question: str, answer: str, score: float) -> None:
    target = Target(answer, question=question, image="images/MapQA_7.png")
    assert by("dcl_science", said, target) == score


def test_dcl_science_needs_the_picture_and_reads_it_of_answers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sample '3': .*the row has no image"):
        require_targets(scorer_named("dcl_science"), "Sci", {"3": Target("a")})
    file = tmp_path / "test.json"
    row = {"question_id": 3, "text": STATES, "image": "images/MapQA_1.png", "answer": "Ohio,Utah"}
    file.write_text(json.dumps([row]))
    assert by("dcl_science", "Utah", read_answers(file)["3"]) == 1 / 2


@pytest.mark.parametrize(
    ("said", "answer", "score"),
    [
        ("a", "A", 1),
        (" A. ", "a", 1),
        ("Y e.s", "Yes", 1),
        ("A\n", "A", 0),  # a line's end isn't dropped
        ("A,", "A", 0),
        ("A", "A.", 0),  # nor anything of the answer
        ("A. Up", "A", 0),
        ("Unanswerable", "Unanswerable", 0),
    ],
)
def test_dcl_choice_drops_spaces_and_periods_of_the_text(
    said: str, answer: str, score: float
) -> None:
    assert by("dcl_choice", said, answer) == score


@pytest.mark.parametrize("name", NAMES)
@given(said=texts, answer=texts)
def test_any_text_has_a_score_between_0_and_1(name: str, said: str, answer: str) -> None:
    assert 0 <= by(name, said, Target(answer, question=STATES, image="a/MapQA_1.png")) <= 1
