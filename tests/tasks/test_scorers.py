"""CoIN's scorers: each published rule, each of its defects, and `strict` without them."""

import string
from collections.abc import Sequence
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmoe.data.settings import TASKS
from cmoe.mini.tasks import make_sample
from cmoe.tasks.registry import score
from cmoe.tasks.scorers import Box, Mode, Target, iou, normalise

MODES: tuple[Mode, ...] = ("official", "strict")

both = pytest.mark.parametrize("mode", MODES)


def one(task: str, mode: Mode, prediction: str | None, target: Target | str) -> float:
    """The score of a single prediction; a bare string is a target's answer."""
    target = Target(target) if isinstance(target, str) else target
    (value,) = score(task, mode, [prediction], [target])
    return value


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


# Grounding

SQUARE = "[0.00, 0.00, 0.50, 0.50]"


def test_grounding_officially_fails_a_box_against_itself() -> None:
    box = "[0.12, 0.30, 0.45, 0.39]"
    assert one("Grounding", "official", box, box) == 0  # its bottom is read as 0.3, its top
    assert one("Grounding", "strict", box, box) == 1


@pytest.mark.parametrize(
    ("prediction", "official", "strict"),
    [
        ("[0.00, 0.00, 0.50, 0.50]", 1, 1),
        ("0.00, 0.00, 0.50, 0.50", 1, 1),  # without brackets both ends are cut all the same
        ("[[0.00,0.00,0.50,0.50]]", 1, 1),
        ("(0.00, 0.00, 0.50, 0.50)", 1, 1),
        ("[0.00, 0.00, 0.50, 0.50].", 1, 1),
        ("The box is [0.00, 0.00, 0.50, 0.50]", 0, 1),
        ("[0.00 0.00 0.50 0.50]", 0, 1),
        ("[0, 0, 0.5, 0.5]", 0, 1),  # the cut leaves nothing of the first number
        ("[.0, .0, .5, .5]", 0, 1),  # and here nothing but a point of the last
        ("[0.00, 0.00, 0.50]", 0, 0),
        ("[0.00, 0.00, 0.50, 0.50, 0.50]", 0, 0),
        ("no box", 0, 0),
        ("[a, b, c, d]", 0, 0),
        ("", 0, 0),
        ("[]", 0, 0),
        ("[nan, nan, nan, nan]", 0, 0),
        ("[0.50, 0.50, 0.00, 0.00]", 0, 0),
        ("[0.00, 0.00, 1.50, 0.50]", 0, 0),
        ("[-0.10, 0.00, 0.50, 0.50]", 1, 0),  # the cut takes the sign
    ],
)
def test_grounding_parsers(prediction: str, official: float, strict: float) -> None:
    assert one("Grounding", "official", prediction, SQUARE) == official
    assert one("Grounding", "strict", prediction, SQUARE) == strict


@both
def test_grounding_needs_more_than_half(mode: Mode) -> None:
    target = "[0.00, 0.00, 0.50, 0.500]"
    assert one("Grounding", mode, "[0.00, 0.00, 0.25, 0.500]", target) == 0  # just a half
    assert one("Grounding", mode, "[0.00, 0.00, 0.26, 0.500]", target) == 1


def test_grounding_strictly_reads_pixels_by_the_picture_size() -> None:
    target = Target("[0.10, 0.25, 0.50, 0.75]", size=(200, 100))
    assert one("Grounding", "strict", "[20, 25, 100, 75]", target) == 1
    assert one("Grounding", "strict", "[20, 25, 300, 75]", target) == 0
    assert one("Grounding", "strict", "[20, 25, 100, 75]", Target(target.answer)) == 0
    assert one("Grounding", "official", "[20, 25, 100, 75]", target) == 0
    corner = Target("[0.00, 0.00, 0.50, 0.50]", size=(4, 4))
    assert one("Grounding", "strict", "[0, 0, 2, 2]", corner) == 1
    assert one("Grounding", "strict", "[0, 0, 1, 1]", corner) == 0  # the whole picture
    pixels = Target("[20, 25, 100, 75]", size=(200, 100))
    assert one("Grounding", "strict", target.answer, pixels) == 1


@both
def test_grounding_refuses_a_target_that_is_no_box(mode: Mode) -> None:
    with pytest.raises(ValueError, match="not a box: 'left'"):
        one("Grounding", mode, SQUARE, "left")


coordinate = st.integers(0, 100)
corners = st.tuples(coordinate, coordinate, coordinate, coordinate)
well_formed = corners.filter(lambda box: box[0] < box[2] and box[1] < box[3])


@given(well_formed, st.sampled_from(["{:.2f}", "{:.3f}", "{!r}"]))
def test_grounding_strictly_scores_a_box_1_against_itself(
    box: tuple[int, int, int, int], form: str
) -> None:
    text = "[" + ", ".join(form.format(part / 100) for part in box) + "]"
    assert one("Grounding", "strict", text, text) == 1
    pixels = Target(str([4 * part for part in box]), size=(400, 400))
    assert one("Grounding", "strict", pixels.answer, pixels) == 1
    assert one("Grounding", "strict", text, pixels) == 1


part = st.floats(0, 1, allow_subnormal=False)
any_box = st.tuples(part, part, part, part)


@given(any_box, any_box)
def test_iou_is_symmetric_and_a_fraction(box: Box, other: Box) -> None:
    assert iou(box, other) == iou(other, box)
    assert 0 <= iou(box, other) <= 1


@given(well_formed)
def test_iou_of_a_box_with_itself_is_1(box: Box) -> None:
    assert iou(box, box) == 1


@given(well_formed, well_formed)
def test_iou_is_the_share_of_common_cells(
    box: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    def cells(b: tuple[int, int, int, int]) -> set[tuple[int, int]]:
        return set(product(range(b[0], b[2]), range(b[1], b[3])))

    common, union = cells(box) & cells(other), cells(box) | cells(other)
    assert iou(box, other) == pytest.approx(len(common) / len(union))


def test_iou_of_an_empty_or_swapped_box_is_0() -> None:
    assert iou((0.2, 0.2, 0.2, 0.8), (0.2, 0.2, 0.2, 0.8)) == 0
    assert iou((0.8, 0.8, 0.2, 0.2), (0.2, 0.2, 0.8, 0.8)) == 0


@given(st.text(string.printable), st.text(string.ascii_letters, min_size=1))
def test_any_text_is_scored(prediction: str, answer: str) -> None:
    for task, mode in product(TASKS, MODES):
        target = SQUARE if task == "Grounding" else answer
        assert 0 <= one(task, mode, prediction, target) <= 1


# CoIN's own arithmetic


def coins_grounding(prediction: str, answer: str, size: list[int]) -> bool:
    """What `eval_grounding.py` of CoIN does, step by step, in its order of operations."""
    side = max(size)
    truth = [float(part) * side for part in answer.replace("[", "").replace("]", "").split(",")]
    said_text = prediction[1:] if prediction.startswith(" ") else prediction
    said_text = said_text.replace("[", "").replace("]", "")
    try:
        said = [float(part) for part in said_text[1:-1].split(",")]
    except ValueError:
        return False
    if len(said) != 4:
        return False
    x1, y1, x2, y2 = (part * side for part in said)
    x3, y3, x4, y4 = truth
    common = max(0, min(x2, x4) - max(x1, x3)) * max(0, min(y2, y4) - max(y1, y3))
    union = (x2 - x1) * (y2 - y1) + (x4 - x3) * (y4 - y3) - common
    return (common / union if union > 0 else 0) > 0.5


def pair(box: Sequence[float], other: Sequence[float]) -> tuple[str, str]:
    """A prediction that CoIN's cut reads as the first box, and an answer that is the second."""
    said, answer = (", ".join(f"{part:.2f}" for part in each) for each in (box, other))
    return f"[{said}0]", f"[{answer}]"


def test_grounding_officially_is_coins_arithmetic_at_just_a_half() -> None:
    said, answer = "[0.08, 0.81, 0.25, 0.91]", "[0.12, 0.81, 0.34, 0.90]"
    assert coins_grounding(said, answer, [305, 476])
    assert one("Grounding", "official", said, Target(answer, size=(305, 476))) == 1
    rng = Random(0)
    factors = set()
    for _ in range(3000):
        # The same height, and a common part of half the union: 3 c = a + b.
        left, top, bottom = rng.randint(0, 40), rng.randint(0, 40), rng.randint(60, 99)
        common = rng.randint(2, 14)
        first = rng.randint(common, 2 * common)
        second = 3 * common - first
        start = left + first - common
        box = (left / 100, top / 100, (left + first) / 100, bottom / 100)
        other = (start / 100, top / 100, (start + second) / 100, bottom / 100)
        size = [rng.randint(50, 1000), rng.randint(50, 1000)]
        said, answer = pair(box, other)
        expected = coins_grounding(said, answer, size)
        target = Target(answer, size=(size[0], size[1]))
        assert one("Grounding", "official", said, target) == expected, (said, answer, size)
        factors.add((expected, one("Grounding", "official", said, answer)))
    assert len(factors) == 4, "the factor decides both ways, so that leaving it out is seen"


official_text = st.one_of(
    st.sampled_from(
        [" [0.10, 0.20, 0.500, 0.700]", "  [0.10, 0.20, 0.500, 0.700]", "[", " ", "[,]"]
    ),
    st.lists(
        st.one_of(st.floats(width=32).map(str), st.integers(-9, 9).map(str), st.text("0.1e-_ n")),
        min_size=3,
        max_size=5,
    ).map(lambda parts: "[" + ", ".join(parts) + "]"),
    st.text("[]0123456789., -eainf", max_size=40),
)


@settings(max_examples=500, deadline=None)
@given(official_text, well_formed, st.tuples(st.integers(1, 2000), st.integers(1, 2000)))
def test_grounding_officially_reads_any_text_as_coin_does(
    prediction: str, box: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    answer = "[" + ", ".join(f"{part / 100:.2f}" for part in box) + "]"
    expected = coins_grounding(prediction, answer, list(size))
    assert one("Grounding", "official", prediction, Target(answer, size=size)) == expected


def test_grounding_officially_drops_the_first_space() -> None:
    """As CoIN's script does before it cuts: without, the first bracket's place would be cut."""
    assert one("Grounding", "official", " [0.00, 0.00, 0.500, 0.500]", SQUARE) == 1
    said = " [0.50, 0.50, 1.00, 1.000]"
    target = Target("[0.50, 0.50, 1.00, 1.00]", size=(100, 50))
    assert one("Grounding", "official", said, target) == coins_grounding(
        said, target.answer, [100, 50]
    )
