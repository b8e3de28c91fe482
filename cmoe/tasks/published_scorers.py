"""Scorers for any task, each with its one published rule.

Where a task has several reference answers, the best match counts. Nothing is cleaned before: what a
rule doesn't say, it doesn't do, in either mode.
"""

from __future__ import annotations

import re

from cmoe.data.boxes import Box, fractions, numbers
from cmoe.data.boxes import iou as overlap
from cmoe.tasks.scorer import Target

ANLS_LEAST = 0.5
RELAXED_CHANGE = 0.05
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def exact(prediction: str, target: Target) -> float:
    """1 where the text is a reference answer, character by character; else 0.

    Hugging Face evaluate's `exact_match` without its options.
    """
    return prediction in target.references


def contains(prediction: str, target: Target) -> float:
    """1 where the text contains a reference answer, whatever the case; else 0.

    OCRBench (Liu et al. 2023, arXiv 2305.07895), github.com/Yuliang-Liu/MultimodalOCR: both sides
    in lower case, without surrounding white space, line breaks as spaces.
    """
    return any(_one_line(answer) in _one_line(prediction) for answer in target.references)


def _one_line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def anls(prediction: str, target: Target) -> float:
    """One less the edit distance in parts of the longer text; 0 below a half.

    ANLS (Biten et al. 2019, arXiv 1907.00490), as DocVQA's evaluation script has it (Mathew et al.
    2021; rrc.cvc.uab.es, challenge 17): in lower case, runs of white space as one space. The script
    keeps a similarity of exactly a half; the paper's equation drops it.
    """
    return max(_similarity(prediction, answer) for answer in target.references)


def _similarity(said: str, answer: str) -> float:
    length = max(len(said.upper()), len(answer.upper()))
    distance = levenshtein(" ".join(said.lower().split()), " ".join(answer.lower().split()))
    similarity = 1 - distance / length if length else 1.0
    return similarity if similarity >= ANLS_LEAST else 0.0


def levenshtein(one: str, other: str) -> int:
    """Insertions, deletions and substitutions that make one text of the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def relaxed(prediction: str, target: Target) -> float:
    """1 for a number within 5 percent of the answer's, or the same text in lower case; else 0.

    ChartQA's relaxed accuracy (Masry et al. 2022, arXiv 2203.10244, section 5.1), as pix2struct's
    `metrics.py` has it: `35%` is the number 0.35, `1,000` is none, and an answer of 0 is compared
    as text. The prediction's surrounding white space is dropped, as Qwen-VL's evaluation does.
    """
    said = prediction.strip()
    return any(_nearly(said, answer) for answer in target.references)


def _nearly(said: str, answer: str) -> bool:
    value, wanted = _number(said), _number(answer)
    if value is not None and wanted:
        return abs(value - wanted) / abs(wanted) <= RELAXED_CHANGE
    return said.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def iou(prediction: str, target: Target) -> float:
    """Intersection over union of the boxes, so that the figure is the mean IoU.

    The measure of PASCAL VOC (Everingham et al. 2010, section 4.2). `box` counts the samples with
    more than a half. A box is four numbers, [left, top, right, bottom]: parts of the picture, or
    pixels where the target has a size. A text without four numbers has none, and 0.

    Raises:
        ValueError: A reference answer isn't a box.
    """
    said = _box(prediction, target)
    wanted = [(answer, _box(answer, target)) for answer in target.references]
    for answer, box in wanted:
        if box is None:
            raise ValueError(
                f"an answer must be a box of four numbers, [left, top, right, bottom], this is "
                f"{answer[:120]!r}, in a picture of size {target.size}"
            )
    return max(overlap(said, box) if said and box else 0.0 for _, box in wanted)


def _box(text: str, target: Target) -> Box | None:
    """Without a size, boxes are compared as they stand: their scale makes no difference."""
    return fractions(text, target.size) if target.size else numbers(text)


def choice(prediction: str, target: Target) -> float:
    """1 where the first word of one character is the answer's letter; else 0.

    ScienceQA's (Lu et al. 2022) as LLaVA's and CoIN's code reads it, over the letters A to Z.

    Raises:
        ValueError: A reference answer isn't one letter.
    """
    for answer in target.references:
        if answer.upper() not in LETTERS:
            raise ValueError(f"an answer must be one letter, A to Z, this is {answer[:120]!r}")
    return first_letter(prediction) in {answer.upper() for answer in target.references}


def first_letter(text: str) -> str | None:
    """The first word of one character, in upper case; None without one."""
    word = re.search(r"\b\w\b", text)
    return word.group().upper() if word else None
