"""Scorers for any task, held against their published code's own figures."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scoring import MODES

from cmoe.tasks.scorer import Mode, Scorer, Target
from cmoe.tasks.scorer_registry import scorer_named

SINGLE = ("exact", "contains", "choice", "vqa", "anls", "relaxed", "iou")


def by(name: str, prediction: str, *answers: str, mode: Mode = "official", **more: object) -> float:
    """The score of a single prediction against one answer or several."""
    scorer = scorer_named(name)
    assert isinstance(scorer, Scorer)
    target = Target(answers[0], answers=answers if answers[1:] else (), **more)  # type: ignore[arg-type]
    return float(scorer.rule(mode)(prediction, target))


# What holds for all of them

BOX = "[0.1, 0.2, 0.5, 0.6]"
RIGHT = dict.fromkeys(SINGLE, "two dogs") | {"choice": "B", "iou": BOX, "relaxed": "12"}
texts = st.text(string.ascii_letters + string.digits + " .,'?%-\n", max_size=12)


@pytest.mark.parametrize("name", SINGLE)
def test_both_modes_give_the_same_and_an_answer_is_right(name: str) -> None:
    right = RIGHT[name]
    for said in (right, f" {right}.", "", "something else"):
        scores = {by(name, said, right, mode=mode) for mode in MODES}
        assert len(scores) == 1
        assert 0 <= scores.pop() <= 1
    assert by(name, right, right) == 1
    assert by(name, "", right) == 0


@pytest.mark.parametrize("name", [name for name in SINGLE if name != "vqa"])
@given(said=texts, others=st.lists(texts, min_size=1, max_size=4))
def test_of_several_answers_the_best_counts(name: str, said: str, others: list[str]) -> None:
    if name in ("iou", "choice"):
        others = [RIGHT[name]] * len(others)
    answers = [RIGHT[name], *others]
    assert by(name, said, *answers) == max(by(name, said, answer) for answer in answers)


# exact, contains, choice


@given(said=texts, answers=st.lists(texts, min_size=2, max_size=4))
def test_exact_is_to_the_letter(said: str, answers: list[str]) -> None:
    assert by("exact", said, *answers) == (said in answers)
    assert by("exact", said, said) == 1
    assert by("exact", f"{said} ", said) == by("exact", f"{said}!", said) == 0


@pytest.mark.parametrize(
    ("said", "answer", "score"),
    [
        ("It says EXIT.", "exit", 1),
        ("the exit\nsign", "Exit Sign ", 1),
        ("exit", "the exit", 0),
        ("kitchen", "hen", 1),  # not by words
        ("", "exit", 0),
    ],
)
def test_contains_is_ocr_benchs(said: str, answer: str, score: float) -> None:
    assert by("contains", said, answer) == score


@pytest.mark.parametrize(
    ("said", "answer", "score"),
    [
        ("H", "H", 1),
        ("(h) a horse", "H", 1),
        ("The answer is H.", "h", 1),
        ("I see a horse: H", "H", 0),  # the first word of one letter is I
        ("horse", "H", 0),
        ("", "A", 0),
    ],
)
def test_choice_reads_any_letter(said: str, answer: str, score: float) -> None:
    assert by("choice", said, answer) == score


@pytest.mark.parametrize("answer", ["horse", "", "1", "AB"])
def test_choice_refuses_an_answer_that_is_no_letter(answer: str) -> None:
    with pytest.raises(ValueError, match="must be one letter, A to Z, this is"):
        by("choice", "A", answer)


# vqa


def of(*votes: tuple[str, int]) -> tuple[str, ...]:
    return tuple(word for word, count in votes for _ in range(count))


@pytest.mark.parametrize(
    ("said", "answers", "score"),
    # What VQAEval of github.com/GT-Vision-Lab/VQA (a013f00) gives.
    [
        ("yes", of(("yes", 3), ("no", 7)), 0.9),
        ("Yes!", of(("yes", 3), ("no", 7)), 0.9),
        ("yes", of(("yes", 10)), 1.0),
        ("Yes", of(("yes", 10)), 0.0),  # all people agree: nothing is normalised
        ("two", of(("2", 10)), 0.0),
        ("two", of(("2", 9), ("3", 1)), 1.0),
        ("the dog", of(("a dog", 2), ("dog", 2), ("cat", 6)), 1.0),
        ("left/right", of(("left right", 5), ("up", 5)), 1.0),
        ("left,right", of(("left right", 5), ("up", 5)), 1.0),  # not by TextVQA's
        ("1,000-x", of(("1000x", 5), ("up", 5)), 1.0),  # nor this
        ("dont", of(("don't", 4), ("do", 6)), 1.0),
        ("bob's", of(("bob's", 2), ("bobs", 8)), 0.6),
        ("U.S.A.", of(("usa", 5), ("up", 5)), 1.0),
        ("3.5", of(("3.5", 5), ("up", 5)), 1.0),
        ("none", of(("0", 3), ("1", 4)), 6 / 7),
        ("yes", of(("yes", 1), ("no", 1)), 1 / 6),
        ("yes", of(("yes", 3)), 2 / 3),
        ("yes", of(("yes", 4)), 1.0),
    ],
)
def test_vqa_is_vqa_v2s(said: str, answers: Sequence[str], score: float) -> None:
    assert by("vqa", said, *answers) == pytest.approx(score)


def test_vqa_takes_a_single_answer_for_all_people_and_normalises_it() -> None:
    assert by("vqa", "The two!", "2") == 1
    assert by("vqa", "three", "2") == 0


@pytest.mark.parametrize("said", ["left,right", "1,000-x"])
def test_text_vqas_normaliser_is_another(said: str) -> None:
    """Each is right by its own rule, with the very answers of the other's test."""
    answers = {"left,right": "left right", "1,000-x": "1000x"}
    people = of((answers[said], 5), ("up", 5))
    assert (by("vqa", said, *people), by("textvqa", said, *people)) == (1, 0)


@given(st.lists(st.sampled_from(["a cat", "Cat", "dog", "two", "2"]), min_size=2, max_size=12))
def test_vqa_agrees_with_counting(answers: list[str]) -> None:
    plain = {"a cat": "cat", "Cat": "cat", "two": "2"}
    normal = [plain.get(a, a) for a in answers] if len(set(answers)) > 1 else answers
    for said in ("cat", "2", "dog"):
        others = [[a for j, a in enumerate(normal) if j != i] for i in range(len(normal))]
        mean = sum(min(1, each.count(said) / 3) for each in others) / len(others)
        assert by("vqa", said, *answers) == pytest.approx(mean)


# anls


@pytest.mark.parametrize(
    ("said", "answers", "score"),
    # The example of Hugging Face evaluate's card, by the equation; and edits counted by hand.
    [
        ("Denver Broncos", ("Denver Broncos", "Denver R. Broncos"), 1.0),
        ("12/15/89", ("12/15/88",), 1 - 1 / 8),
        ("Dear dr. Lobo", ("Dear Dr. Lobo", "Dr. Lobo"), 1.0),
        ("kitten", ("sitting",), 1 - 3 / 7),
        ("ab", ("ac",), 0.5),  # kept at just a half
        ("abc", ("axy",), 0.0),
        ("Total   amount", ("total\namount",), 1.0),
        ("", ("",), 1.0),
        ("", ("a",), 0.0),
    ],
)
def test_anls_is_docvqas(said: str, answers: Sequence[str], score: float) -> None:
    assert by("anls", said, *answers) == pytest.approx(score)


words = st.text("ab c", max_size=7)


@given(one=words, other=words)
def test_anls_is_a_distance_of_edits(one: str, other: str) -> None:
    """The recursive definition, without a table."""

    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return distance(a[1:], b[1:])
        return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))

    length = max(len(one), len(other))
    edits = distance(" ".join(one.split()), " ".join(other.split()))
    similarity = 1 - edits / length if length else 1.0
    assert by("anls", one, other) == pytest.approx(similarity if similarity >= 0.5 else 0.0)


# relaxed


@pytest.mark.parametrize(
    ("answer", "said", "score"),
    # What `relaxed_correctness` of google-research/pix2struct gives.
    [
        ("100", "104.9", 1),
        ("100", "105", 1),
        ("100", "105.1", 0),
        ("-100", "-104", 1),
        ("2019", "2020", 1),
        ("0", "0.0", 0),
        ("0", "0", 1),
        ("35%", "0.35", 1),
        ("35%", "35", 0),
        ("0.07", "7%", 1),
        ("1,000", "1000", 0),
        ("1e3", "1000", 1),
        ("Yes", "yes", 1),
        ("Yes", "yes!", 0),
        ("nan", "nan", 0),
        ("inf", "inf", 0),
        ("['A', 'B']", "A", 0),
        ("blue", " Blue\n", 1),  # Qwen-VL's evaluation strips a prediction
    ],
)
def test_relaxed_is_chartqas(answer: str, said: str, score: float) -> None:
    assert by("relaxed", said, answer) == score


@given(
    st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-3),
    st.floats(-0.2, 0.2).filter(lambda x: abs(abs(x) - 0.05) > 1e-6),
)
def test_relaxed_allows_five_percent(value: float, change: float) -> None:
    assert by("relaxed", repr(value * (1 + change)), repr(value)) == (abs(change) < 0.05)


# iou


@pytest.mark.parametrize(
    ("said", "answer", "score"),
    [
        ("[0, 0, 0.5, 0.5]", "[0, 0, 0.5, 1]", 0.5),
        ("the box (0.25,0,0.75,1)", "[0, 0, 0.5, 1]", 1 / 3),
        ("[0.5, 0.5, 1, 1]", "[0, 0, 0.5, 0.5]", 0.0),
        ("[0.5, 0, 0, 1]", "[0, 0, 0.5, 1]", 0.0),  # swapped corners
        ("on the left", "[0, 0, 0.5, 1]", 0.0),
        ("[10, 20, 30, 40]", "[10, 20, 30, 60]", 0.5),  # pixels, of whatever picture
    ],
)
def test_iou_is_the_overlap(said: str, answer: str, score: float) -> None:
    assert by("iou", said, answer) == pytest.approx(score)


def test_iou_meets_pixels_with_parts_where_the_size_is_known() -> None:
    said, answer = "[64, 48, 320, 240]", "[0.1, 0.1, 0.5, 0.5]"
    assert by("iou", said, answer, size=(640, 480)) == pytest.approx(1)
    assert math.isclose(by("iou", said, answer), 0)


def test_iou_refuses_an_answer_that_is_no_box() -> None:
    with pytest.raises(ValueError, match=r"must be a box of four numbers.*'left'"):
        by("iou", BOX, "left")


@given(st.lists(st.integers(0, 6), min_size=8, max_size=8))
def test_iou_agrees_with_counting_cells(corners: list[int]) -> None:
    boxes = [
        (min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in (corners[:4], corners[4:])
    ]
    one, other = (
        {(x, y) for x in range(left, right) for y in range(top, bottom)}
        for left, top, right, bottom in boxes
    )
    share = len(one & other) / len(one | other) if one | other else 0.0
    said, answer = (str([n / 8 for n in box]) for box in boxes)
    assert by("iou", said, answer) == pytest.approx(share)
