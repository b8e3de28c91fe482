"""Scorers of CoIN's tasks, as published (`official`) and without their defects (`strict`).

`official` keeps every quirk of CoIN's evaluation scripts, so that figures compare with papers.
`strict` has the same intent: surrounding white space and a final period are dropped, an empty
prediction is wrong, ImageNet compares whole words, and Grounding reads every digit of a box.

`cmoe score` scores a prediction file by them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from cmoe.data.boxes import Box, fractions, iou, numbers

Mode = Literal["official", "strict"]


@dataclass(frozen=True)
class Target:
    """What a prediction is scored against.

    `answer` is the test file's; `size` the picture's width and height in pixels, for Grounding;
    `choices` the number of a ScienceQA question's options, where known; `answers` TextVQA's ten
    human answers, where the data set's own file is given: they decide, and `answer` is the first.
    """

    answer: str
    size: tuple[int, int] | None = None
    choices: int | None = None
    answers: tuple[str, ...] = ()


Rule = Callable[[str, Target], float]
"""A prediction's score in [0, 1] against its target."""


@dataclass(frozen=True)
class Scorer:
    """How a task's predictions are judged.

    Attributes:
        official: The rule of CoIN's script.
        intended: What the script means to do, where it does something else.
        by_order: Whether the script matches predictions with answers by their order, not by id.
        counts_missing: Whether the script counts a missing prediction as wrong; elsewhere its
            sample is left out.
    """

    official: Rule
    intended: Rule | None = None
    by_order: bool = False
    counts_missing: bool = False

    def rule(self, mode: Mode) -> Rule:
        """The rule of a mode.

        Raises:
            ValueError: There is no such mode.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"no mode {mode!r}; there are {', '.join(get_args(Mode))}")
        return self.official if mode == "official" else self._strict

    def _strict(self, prediction: str, target: Target) -> float:
        """The intended rule, after cleaning."""
        text, rule = _clean(prediction), self.intended or self.official
        return rule(text, replace(target, answer=_clean(target.answer))) if text else 0.0


def _clean(text: str) -> str:
    """Without surrounding white space and a final period."""
    return text.strip().removesuffix(".").rstrip()


# ScienceQA

OPTIONS = tuple("ABCDE")
"""Letters of a ScienceQA question's choices."""


def _science_qa(prediction: str, target: Target) -> float:
    """The chosen letter, among the question's choices.

    CoIN tries a bare letter, then a leading `X. `, then the first word of one character: the last
    finds what the first two would.
    """
    word = re.search(r"\b\w\b", prediction)
    letter = word.group().upper() if word else None
    return letter in OPTIONS[: target.choices] and letter == target.answer


# TextVQA

ANSWERS = 10
"""Human answers to a TextVQA question."""


def _text_vqa(prediction: str, target: Target) -> float:
    """Soft accuracy: right if 3 of the people say so, averaged over leaving each of them out.

    A single answer counts as that of all ten people.
    """
    answers = target.answers or (target.answer,) * ANSWERS
    if len(answers) != ANSWERS:
        raise ValueError(f"a TextVQA question has {ANSWERS} answers, not {len(answers)}: {answers}")
    said = normalise(prediction)
    agree = [normalise(answer) == said for answer in answers]
    return sum(min(1.0, (sum(agree) - left_out) / 3) for left_out in agree) / ANSWERS


def normalise(answer: str) -> str:
    """An answer in the form in which EvalAI (and M4C after it) compares them.

    Lower case, punctuation gone, number words as digits, no articles, apostrophes restored.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    bare = text
    for mark in _MARKS:  # beside a space a mark goes; between words it parts them
        beside_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if beside_space else " ")
    # At most 32: the published code passes re.UNICODE, which is 32, in the place of the count.
    bare = _PERIOD.sub("", bare, count=32)
    words = (_DIGITS.get(word, word) for word in bare.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


_MARKS = r';/[]"{}()=+\_-><@`!'
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(n) for n, word in enumerate(_NUMBERS.split())} | {"none": "0"}

_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""

# What is restored lacks one apostrophe. The last entry is the published list's slip, kept.
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in _CONTRACTED.split()
    for at, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


# ImageNet

_WORD = re.compile(r"\w+")


def _image_net(prediction: str, target: Target) -> float:
    """One contains the other, as strings: '' is in every answer, `hen` in `kitchen`."""
    return target.answer in prediction or prediction in target.answer


def _image_net_strict(prediction: str, target: Target) -> float:
    """One contains the other, as runs of whole words; case counts, as it does officially."""
    said, answer = _words(prediction), _words(target.answer)
    return answer in said or said in answer


def _words(text: str) -> str:
    """The text's words, each between two spaces."""
    return f" {' '.join(_WORD.findall(text))} "


# GQA, VizWiz, VQAv2, OCRVQA


def _gqa(prediction: str, target: Target) -> float:
    return prediction.rstrip(".").lower() == target.answer


def _same_upper(prediction: str, target: Target) -> float:
    return prediction.upper() == target.answer.upper()


def _ocr_vqa(prediction: str, target: Target) -> float:
    """The same in lower case; to say `Unanswerable`, so written, is wrong for any answer."""
    return "Unanswerable" not in prediction and prediction.lower() == target.answer.lower()


# Grounding


def _grounding(prediction: str, target: Target) -> float:
    """CoIN's arithmetic: both boxes times the longer side of the picture, then their IoU.

    In real numbers the factor changes nothing; in floating point it decides at just a half.
    """
    said, answer = _cut_box(prediction), _target_box(target, numbers)
    side = max(target.size) if target.size else 1
    return said is not None and iou(_scaled(said, side), _scaled(answer, side)) > 0.5


def _grounding_strict(prediction: str, target: Target) -> float:
    said = fractions(prediction, target.size)
    answer = _target_box(target, lambda text: fractions(text, target.size))
    return said is not None and iou(said, answer) > 0.5


def _target_box(target: Target, read: Callable[[str], Box | None]) -> Box:
    box = read(target.answer)
    if box is None:
        raise ValueError(f"not a box: {target.answer!r}, in a picture of size {target.size}")
    return box


def _cut_box(text: str) -> Box | None:
    """CoIN's parser: it drops a first space and brackets, and then, as if those were still there,
    both ends.

    A top or left that reads 0.x survives as .x; the bottom loses its last digit.
    """
    bare = text.removeprefix(" ").replace("[", "").replace("]", "")
    try:
        left, top, right, bottom = (float(part) for part in bare[1:-1].split(","))
    except ValueError:
        return None
    return left, top, right, bottom


def _scaled(box: Box, side: int) -> Box:
    return box[0] * side, box[1] * side, box[2] * side, box[3] * side


SCORERS: Mapping[str, Scorer] = {
    "choice": Scorer(_science_qa, counts_missing=True),
    "vqa": Scorer(_text_vqa),
    "class_name": Scorer(_image_net, _image_net_strict, by_order=True),
    "lower_case": Scorer(_gqa),
    "upper_case": Scorer(_same_upper),
    "ocr": Scorer(_ocr_vqa),
    "box": Scorer(_grounding, _grounding_strict),
}
"""All scorers by name; `cmoe.tasks.registry` says which is a task's."""
