"""Paraphrases: the question stays, and nothing depends on chance or order."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmoe.common.instructions import Instructions
from cmoe.data.paraphrases import NATURAL, Paraphrased, Paraphraser, original
from cmoe.data.samples import Sample
from cmoe.data.settings import TASKS
from cmoe.mini.tasks import PHRASE, make_sample

PROMPTS = {task: [make_sample(task, "train", index).text for index in range(200)] for task in TASKS}


@given(task=st.sampled_from(TASKS), index=st.integers(0, 199), seed=st.integers(0, 9999))
def test_a_paraphrase_asks_the_same(task: str, index: int, seed: int) -> None:
    paraphraser, prompt = Paraphraser(Instructions.of(PROMPTS[task])), PROMPTS[task][index]
    question = " ".join(paraphraser.bare(prompt).split()).rstrip(".?! ").lower()
    asked = paraphraser.paraphrase(prompt, Random(seed))
    assert question in " ".join(asked.split()).lower()
    for way in NATURAL:
        assert question in " ".join(paraphraser.asked(prompt, way).split()).lower()
    opening, own, ending = Instructions.of(PROMPTS[task]).split(prompt)
    assert paraphraser.instructed(prompt, Random(seed)) == "".join(
        (opening, paraphraser.paraphrase(own, Random(seed)), ending)
    )


@pytest.mark.parametrize("instructed", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_samples_is_asked_otherwise_and_keeps_all_but_its_words(
    share: float, instructed: bool
) -> None:
    samples = [Sample(str(n), text, f"answer {n}") for n, text in enumerate(PROMPTS["GQA"])]
    asked = Paraphrased(samples, share, "seed", instructed=instructed)
    assert original(asked) is samples
    assert original(samples) is samples
    assert [(s.id, s.answer) for s in asked] == [(s.id, s.answer) for s in samples]
    changed = sum(a.text != s.text for a, s in zip(asked, samples, strict=True))
    if not instructed:  # between its instructions, a question may be asked as it was
        assert abs(changed / len(samples) - share) < 0.1
    assert instructed == all(sample.text.endswith(f"\n{PHRASE}") for sample in asked) or not share
    assert [*asked] == [*Paraphrased(samples, share, "seed", instructed=instructed)]
    assert asked[-1] == asked[len(samples) - 1]
    assert asked[10:20:3] == [asked[n] for n in range(10, 20, 3)]
    if 0 < share < 1:
        assert [*asked] != [*Paraphrased(samples, share, "another", instructed=instructed)]
