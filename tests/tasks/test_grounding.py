"""CoIN's scorer of Grounding: its parsers, the overlap of boxes, and CoIN's own arithmetic."""

from collections.abc import Sequence
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scoring import SQUARE, both, one

from cmoe.tasks.scorers import Box, Mode, Target, iou

# Parsers and the threshold


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
