"""Soft accuracy over several people's answers, by two normalisers: TextVQA's and VQA v2's.

An answer is right as far as three of the others say the same, a mean over leaving each of them out:
`mean_i min(1, n_i / 3)`, with `n_i` the equal answers without answer `i` (Antol et al. 2015; the
form of VQA's evaluation code). The two differ in when two answers are the same:

- TextVQA's is EvalAI's (and M4C's after it). It always normalises both sides, drops every comma and
  parts `'s` from its word.
- VQA v2's is `VQAEval` of github.com/GT-Vision-Lab/VQA. It normalises neither side where all people
  say the same, letter by letter; it parts words at a comma without a space beside it; and where a
  comma stands between two digits, it drops every mark without parting words.
"""

from __future__ import annotations

import re

from cmoe.tasks.scorer import Target

ANSWERS = 10
"""Human answers to a TextVQA question."""

_ENOUGH = 3  # of the others


def text_vqa(prediction: str, target: Target) -> float:
    """TextVQA's soft accuracy over ten answers; a single answer counts as that of all ten people.

    Raises:
        ValueError: There are other than ten answers.
    """
    answers = target.answers or (target.answer,) * ANSWERS
    if len(answers) != ANSWERS:
        raise ValueError(f"a TextVQA question has {ANSWERS} answers, not {len(answers)}: {answers}")
    return _agreement(normalise(prediction), [normalise(answer) for answer in answers])


def vqa(prediction: str, target: Target) -> float:
    """VQA v2's soft accuracy (Goyal et al. 2017), by the rule of its evaluation code.

    Over any number of answers; with fewer than four, not even all of them give a 1. The code has no
    rule for a single answer: here it counts as that of ten people, and both sides are normalised.
    """
    said, answers = _spaced(prediction), [_spaced(answer) for answer in target.references]
    if len(answers) == 1 or len(set(answers)) > 1:
        said, answers = _vqa_normal(said), [_vqa_normal(answer) for answer in answers]
    return _agreement(said, answers if len(answers) > 1 else answers * ANSWERS)


def _agreement(said: str, answers: list[str]) -> float:
    agree = [answer == said for answer in answers]
    return sum(min(1.0, (sum(agree) - left_out) / _ENOUGH) for left_out in agree) / len(agree)


# Normalisers


def normalise(answer: str) -> str:
    """An answer in the form in which EvalAI (and M4C after it) compares them.

    Lower case, punctuation gone, number words as digits, no articles, apostrophes restored.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = _spaced(text)
    bare = text
    for mark in _MARKS:  # beside a space a mark goes; between words it parts them
        bare = bare.replace(mark, "" if _beside_space(mark, text) else " ")
    return _plain_words(bare)


def _vqa_normal(text: str) -> str:
    """An answer in the form in which VQA's evaluation code compares them."""
    bare, number = text, _THOUSANDS.search(text)
    for mark in f"{_MARKS},?":
        bare = bare.replace(mark, "" if number or _beside_space(mark, text) else " ")
    return _plain_words(bare)


def _spaced(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _beside_space(mark: str, text: str) -> bool:
    return f"{mark} " in text or f" {mark}" in text


def _plain_words(text: str) -> str:
    """Without periods, articles and number words; with apostrophes."""
    # At most 32: the published codes pass re.UNICODE, which is 32, in the place of the count.
    words = (_DIGITS.get(word, word) for word in _PERIOD.sub("", text, count=32).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


_MARKS = r';/[]"{}()=+\_-><@`!'
_PERIOD = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")
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
