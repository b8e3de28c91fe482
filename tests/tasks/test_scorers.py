"""CoIN's scorers: each published rule, each of its defects, and `strict` without them.

Grounding's, which measures boxes, is in `test_grounding.py`.
"""

import string
from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scoring import MODES, SQUARE, both, one

from cmoe.data.settings import TASKS
from cmoe.mini.tasks import make_sample
from cmoe.tasks.registry import score
from cmoe.tasks.scorers import Mode, Target, normalise

# What holds for every task


@both
def test_every_task_of_the_stream_has_a_scorer(mode: Mode) -> None:
    for task in TASKS:
        samples = [make_sample(task, "test", index) for index in range(50)]
        targets = [Target(sample.answer) for sample in samples]
        assert score(task, mode, [None] * 50, targets) == [0.0] * 50
        assert score(task, mode, [], []) == []
        if (task, mode) != ("Grounding", "official"):  # its parser loses a digit of right answers
            assert score(task, mode, [s.answer for s in samples], targets) == [1.0] * 50


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'VQA'.*ScienceQA, TextVQA, ImageNet, GQA, Viz"):
        score("VQA", "official", ["yes"], [Target("yes")])


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'Strict'; there are official, strict"):
        score("GQA", "Strict", ["yes"], [Target("yes")])  # type: ignore[arg-type]


@both
def test_different_lengths_are_refused(mode: Mode) -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 targets in GQA"):
        score("GQA", mode, ["yes"], [Target("yes"), Target("no")])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("prediction", ["", " ", ".", "\n.\n", None])
def test_strictly_an_empty_prediction_is_wrong(task: str, prediction: str | None) -> None:
    for answer in ("[0.1, 0.2, 0.3, 0.4]",) if task == "Grounding" else ("A", "the", ""):
        assert one(task, "strict", prediction, answer) == 0


@pytest.mark.parametrize("task", [task for task in TASKS if task != "Grounding"])
@pytest.mark.parametrize("form", ["{}", "{}.", " {}", "{}\n", "\t{} . "])
def test_strictly_white_space_and_a_final_period_do_not_count(task: str, form: str) -> None:
    answer = "b" if task == "GQA" else "B"
    assert one(task, "strict", form.format(answer), answer) == 1
    assert one(task, "strict", answer, form.format(answer)) == 1


texts = st.sampled_from(["A", "B. red", "the cat", "Cat", "cat.", "", "[0.1, 0.2, 0.5, 0.6]", "2"])


@pytest.mark.parametrize(("task", "mode"), list(product(TASKS, MODES)))
@given(st.lists(st.tuples(st.none() | texts, texts), max_size=8), st.randoms(use_true_random=False))
def test_permuted_samples_have_permuted_scores(
    task: str, mode: Mode, samples: list[tuple[str | None, str]], rng: Random
) -> None:
    answers = ("[0.1, 0.2, 0.5, 0.7]" if task == "Grounding" else a for _, a in samples)
    pairs = list(zip((said for said, _ in samples), map(Target, answers), strict=True))
    order = list(range(len(pairs)))
    rng.shuffle(order)
    scores = score(task, mode, [p for p, _ in pairs], [t for _, t in pairs])
    shuffled = [pairs[k] for k in order]
    assert score(task, mode, [p for p, _ in shuffled], [t for _, t in shuffled]) == [
        scores[k] for k in order
    ]
    assert all(0 <= value <= 1 for value in scores)


@given(st.text(string.printable), st.text(string.ascii_letters, min_size=1))
def test_any_text_is_scored(prediction: str, answer: str) -> None:
    for task, mode in product(TASKS, MODES):
        target = SQUARE if task == "Grounding" else answer
        assert 0 <= one(task, mode, prediction, target) <= 1


# ScienceQA


@both
@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("B. the blue bar", "B"),
        ("The answer is B.", "B"),
        ("(b)", "B"),
        ("b", "B"),
        ("Answer: C because B is wrong", "C"),
        ("I think it is B", None),  # the first word of one character is I
        ("a picture of B", "A"),
        ("blue", None),
        ("AB", None),
        ("BC. x", None),
        ("2", None),
    ],
)
def test_science_qa_reads_a_letter(mode: Mode, prediction: str, letter: str | None) -> None:
    for answer in "ABCDE":
        assert one("ScienceQA", mode, prediction, answer) == (answer == letter)


@both
def test_science_qa_refuses_letters_outside_the_choices(mode: Mode) -> None:
    assert one("ScienceQA", mode, "C", Target("C", choices=3)) == 1
    assert one("ScienceQA", mode, "C", Target("C", choices=2)) == 0
    assert one("ScienceQA", mode, "E", "E") == 1
    assert one("ScienceQA", mode, "F", "F") == 0


@both
def test_science_qa_counts_a_missing_prediction_as_wrong(mode: Mode) -> None:
    targets = [Target("A"), Target("A")]
    assert score("ScienceQA", mode, [None, "A"], targets) == [0.0, 1.0]


# TextVQA


def people(**votes: int) -> Target:
    """Ten answers: each word as often as it is given, the rest all different."""
    said = [word for word, count in votes.items() for _ in range(count)]
    rest = [f"other{k}" for k in range(10 - len(said))]
    return Target(answer="ignored", answers=(*said, *rest))


@both
@pytest.mark.parametrize(
    ("agreeing", "accuracy"),
    # Leave one out: of 3, seven times 3 others agree and three times 2: (7 + 3 * 2/3) / 10.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_text_vqa_leaves_each_answer_out(mode: Mode, agreeing: int, accuracy: float) -> None:
    assert one("TextVQA", mode, "stop", people(stop=agreeing)) == pytest.approx(accuracy)


@both
def test_text_vqa_takes_a_single_answer_for_all_ten(mode: Mode) -> None:
    assert one("TextVQA", mode, "The Stop!", "stop") == 1
    assert one("TextVQA", mode, "go", "stop") == 0


@both
def test_text_vqa_normalises_both_sides(mode: Mode) -> None:
    target = Target("?", answers=("Two dogs", "2 dogs.", "the two dogs") + ("cat",) * 7)
    assert one("TextVQA", mode, "two dogs", target) == pytest.approx(0.9)


@both
@pytest.mark.parametrize("count", [1, 9, 11])
def test_text_vqa_refuses_other_than_ten_answers(mode: Mode, count: int) -> None:
    with pytest.raises(ValueError, match=f"10 answers, not {count}"):
        one("TextVQA", mode, "stop", Target("stop", answers=("stop",) * count))


@given(st.lists(st.sampled_from(["a cat", "Cat", "dog", "dog?", "2"]), min_size=10, max_size=10))
def test_text_vqa_agrees_with_counting(answers: list[str]) -> None:
    """The soft accuracy as it is defined: for each person, the agreement among the nine others."""
    for said in ("cat", "dog", "two", "fish"):
        expected = 0.0
        for k in range(10):
            others = [normalise(answer) for answer in answers[:k] + answers[k + 1 :]]
            expected += min(1.0, others.count(normalise(said)) / 3) / 10
        got = one("TextVQA", "official", said, Target("", answers=tuple(answers)))
        assert got == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("A Cat", "cat"),
        ("the an a", ""),
        ("Ten", "10"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # a slip of the published list
        ("oclock", "o'clock"),
        ("Bob's", "bob 's"),
        ("1,000", "1000"),
        ("what?", "what"),
        ("3.5", "3.5"),
        ("end.", "end"),
        ("U.S.A.", "usa"),
        ("left/right", "left right"),  # between words a mark parts them
        ("left/ right", "left right"),
        ("left/ right/wrong", "left rightwrong"),  # but beside a space it goes everywhere
        ("(stop)", "stop"),
        ("new\nline\ttab", "new line tab"),
        ("  ", ""),
        ("." * 33, "."),  # 32 periods go, and no more
        ("50%", "50%"),
    ],
)
def test_normalise_is_evalais(answer: str, normal: str) -> None:
    assert normalise(answer) == normal


# ImageNet


@pytest.mark.parametrize(
    ("prediction", "answer", "official", "strict"),
    [
        ("hen", "hen", 1, 1),
        ("", "hen", 1, 0),
        ("It is a hen", "hen", 1, 1),
        ("a kitchen", "hen", 1, 0),
        ("en", "hen", 1, 0),
        ("shark", "tiger shark", 1, 1),
        ("tiger, shark", "tiger shark", 0, 1),
        ("tiger sharks", "tiger shark", 1, 0),
        ("a tiger shark.", "tiger shark", 1, 1),
        ("shark tiger", "tiger shark", 0, 0),
        ("Hen", "hen", 0, 0),
        ("hen.", "hen", 1, 1),
        ("duck", "hen", 0, 0),
    ],
)
def test_image_net(prediction: str, answer: str, official: float, strict: float) -> None:
    assert one("ImageNet", "official", prediction, answer) == official
    assert one("ImageNet", "strict", prediction, answer) == strict


def test_image_net_counts_a_missing_prediction_as_wrong_and_an_empty_one_as_right() -> None:
    assert score("ImageNet", "official", [None, ""], [Target("hen")] * 2) == [0.0, 1.0]


# GQA, VizWiz, VQAv2, OCRVQA


@pytest.mark.parametrize(
    ("prediction", "official", "strict"),
    [
        ("yes", 1, 1),
        ("Yes.", 1, 1),
        ("YES...", 1, 1),
        (" yes", 0, 1),
        ("yes. ", 0, 1),
        ("yes it is", 0, 0),
        ("no", 0, 0),
    ],
)
def test_gqa(prediction: str, official: float, strict: float) -> None:
    assert one("GQA", "official", prediction, "yes") == official
    assert one("GQA", "strict", prediction, "yes") == strict


def test_gqa_officially_lowers_the_prediction_alone() -> None:
    assert one("GQA", "official", "Yes", "Yes") == 0


@pytest.mark.parametrize("task", ["VizWiz", "VQAv2"])
@pytest.mark.parametrize(
    ("prediction", "official", "strict"),
    [
        ("Dark Blue", 1, 1),
        ("dark BLUE", 1, 1),
        ("dark blue.", 0, 1),
        (" dark blue", 0, 1),
        ("dark blue\n", 0, 1),
        ("dark  blue", 0, 0),
        ("blue", 0, 0),
    ],
)
def test_vizwiz_and_vqa_v2(task: str, prediction: str, official: float, strict: float) -> None:
    assert one(task, "official", prediction, "dark blue") == official
    assert one(task, "strict", prediction, "dark blue") == strict


@pytest.mark.parametrize("task", ["VizWiz", "VQAv2", "OCRVQA"])
def test_one_answer_decides_whatever_ten_people_said(task: str) -> None:
    target = Target("red", answers=("blue",) * 10)
    assert one(task, "official", "blue", target) == 0
    assert one(task, "official", "red", target) == 1


@pytest.mark.parametrize(
    ("prediction", "answer", "official", "strict"),
    [
        ("John Smith", "john smith", 1, 1),
        ("john smith", "John Smith", 1, 1),
        ("john smith.", "john smith", 0, 1),
        (" john smith", "john smith", 0, 1),
        ("Unanswerable", "Unanswerable", 0, 0),
        ("The Unanswerable Question", "the unanswerable question", 0, 0),
        ("unanswerable", "unanswerable", 1, 1),
        ("john", "john smith", 0, 0),
    ],
)
def test_ocr_vqa(prediction: str, answer: str, official: float, strict: float) -> None:
    assert one("OCRVQA", "official", prediction, answer) == official
    assert one("OCRVQA", "strict", prediction, answer) == strict
