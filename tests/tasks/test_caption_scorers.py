"""Figures of captions, held against COCO's own code and sacreBLEU's published example."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmoe.tasks.caption_scorers import bleu4, cider, words
from cmoe.tasks.scorer import Target

DATA = [
    (
        "A man's dog sits on the red couch.",
        ("A dog is sitting on a red couch.", "The man's dog sits on a couch."),
    ),
    (
        "two women walk in a park",
        (
            "Two women are walking through a park.",
            "Women walk in the park, and it isn't raining.",
            "Two women walk in a park.",
        ),
    ),
    ("a cat", ("A black-and-white cat sleeps on a chair.",)),
    (
        "A clock tower at 10:15, in the rain.",
        ("A clock tower that reads 10:15.", "There's a tall clock tower."),
    ),
]
SAID = [said for said, _ in DATA]
TARGETS = [Target(answers[0], answers=answers) for _, answers in DATA]


@pytest.mark.parametrize(
    ("caption", "tokens"),
    # Of pycocoevalcap 1.2: the PTB tokeniser of Stanford CoreNLP 3.4.1, and its list of marks.
    [
        ("A man's dog isn't on the couch, is it?", "a man 's dog is n't on the couch is it"),
        ("It's 5:30 p.m.", "it 's 5:30 p.m."),
        ("There are 3 cats, 2 dogs and a bird - all asleep.",
         "there are 3 cats 2 dogs and a bird all asleep"),
        ("A black-and-white photo of a street in the U.S.A.",
         "a black-and-white photo of a street in the u.s.a."),
        ("Cheese, tomatoes & basil", "cheese tomatoes & basil"),
        ("I can't see what they're doing.", "i ca n't see what they 're doing"),
        ("A $5 bill lies on the table ...", "a $ 5 bill lies on the table"),
        ("We've got a well-lit kitchen; they'd love it.",
         "we 've got a well-lit kitchen they 'd love it"),
        ("at 100% speed/half power", "at 100 % speed/half power"),
        ("the cat's toys and the dogs' bowls", "the cat 's toys and the dogs bowls"),
    ],
)  # fmt: skip
def test_words_are_coco_s_tokens(caption: str, tokens: str) -> None:
    assert words(caption) == tokens.split()


def test_cider_is_coco_s() -> None:
    """CiderScorer of pycocoevalcap 1.2 with its Java tokeniser gives 2.85045012813587."""
    assert cider(SAID, TARGETS) == pytest.approx(2.85045012813587)


ANY = ["a", "the", "man", "dog", "sits", "on", "park", "red"]
captions = st.lists(st.sampled_from(ANY), max_size=8).map(" ".join)
rows = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=3)), min_size=1)


@given(rows, st.randoms(use_true_random=False))
def test_cider_is_within_bounds_and_knows_no_order(
    found: list[tuple[str, list[str]]], rng: object
) -> None:
    said, targets = [s for s, _ in found], [Target(a[0], answers=tuple(a)) for _, a in found]
    figure = cider(said, targets)
    assert 0 <= figure <= 10 + 1e-9
    turned = cider(said[::-1], targets[::-1])
    assert turned == pytest.approx(figure)


def test_a_sample_s_part_of_cider_depends_on_the_others() -> None:
    """So no sample has a score of its own."""
    alone = cider(SAID[:1], TARGETS[:1])
    assert alone == 0
    pairs = [cider([SAID[0], SAID[n]], [TARGETS[0], TARGETS[n]]) for n in (1, 2, 3)]
    assert cider(SAID, TARGETS) != pytest.approx(sum(pairs) / 3)


def test_cider_of_the_references_themselves_is_the_largest() -> None:
    distinct = [Target(text) for text in ("a red dog sits here", "two men walk far away")]
    assert cider([t.answer for t in distinct], distinct) == pytest.approx(10)
    assert cider([t.answer for t in distinct[::-1]], distinct) == pytest.approx(0)


def test_bleu_is_sacrebleu_s() -> None:
    """The example of sacreBLEU's README, whose BLEU is 48.53; samples have one reference or two."""
    references = [
        ("The dog bit the man.", "The dog had bit the man."),
        ("It was not unexpected.", "No one was surprised."),
        ("The man bit him first.", "The man had bitten the dog."),
    ]
    said = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    targets = [Target(answers[0], answers=answers) for answers in references]
    assert 100 * bleu4(said, targets) == pytest.approx(48.53, abs=0.005)
    assert bleu4(SAID, [Target(said) for said in SAID]) == pytest.approx(1)
    assert bleu4(["", *said], [Target("unanswered", answers=("unanswered",)), *targets]) < 0.4853


def test_bleu_counts_as_many_references_as_a_sample_has() -> None:
    """One that is missing isn't an empty one: adding another's to a sample can only help it."""
    few = [Target("a red dog sits here", answers=("a red dog sits here",)), TARGETS[1]]
    assert bleu4(["a red dog sits here", "Two women walk in a park."], few) == pytest.approx(1)
