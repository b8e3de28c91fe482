"""Scorers of CoIN's tasks, as published (`official`) and without their defects (`strict`).

`official` keeps every quirk of CoIN's evaluation scripts, so that figures compare with papers.
`strict` has the same intent: surrounding white space and a final period are dropped, an empty
prediction is wrong, ImageNet compares whole words, and Grounding reads every digit of a box.

`cmoe score` scores a prediction file by them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from cmoe.data.boxes import Box, fractions, iou, numbers
from cmoe.tasks.published_scorers import first_letter
from cmoe.tasks.scorer import CoinScorer
from cmoe.tasks.scorer import Mode as Mode
from cmoe.tasks.scorer import Target as Target
from cmoe.tasks.soft_accuracy import ANSWERS as ANSWERS
from cmoe.tasks.soft_accuracy import normalise as normalise
from cmoe.tasks.soft_accuracy import text_vqa

# ScienceQA

OPTIONS = tuple("ABCDE")
"""Letters of a ScienceQA question's choices."""


def _science_qa(prediction: str, target: Target) -> float:
    """The chosen letter, among the question's choices.

    CoIN tries a bare letter, then a leading `X. `, then the first word of one character: the last
    finds what the first two would.
    """
    letter = first_letter(prediction)
    return letter in OPTIONS[: target.choices] and letter == target.answer


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


SCORERS: Mapping[str, CoinScorer] = {
    "scienceqa": CoinScorer(_science_qa, counts_missing=True),
    "textvqa": CoinScorer(text_vqa),
    "class_name": CoinScorer(_image_net, intended=_image_net_strict, by_order=True),
    "lower_case": CoinScorer(_gqa),
    "upper_case": CoinScorer(_same_upper),
    "ocr": CoinScorer(_ocr_vqa),
    "box": CoinScorer(_grounding, intended=_grounding_strict),
}
"""CoIN's by name; `cmoe.tasks.registry` says which is a task's."""
