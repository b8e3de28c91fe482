"""What a task's locator is fitted on."""

from __future__ import annotations

from dataclasses import replace

from support.tiny_cmoe import EXPERTS, LOCATOR, PROBE, SAMPLES, Watching
from support.tiny_models import make_base

from cmoe.data.paraphrases import Paraphrased
from cmoe.methods.cmoe import CMoE


def test_the_locator_is_fitted_on_the_samples_and_on_paraphrases_of_them() -> None:
    samples = [
        replace(sample, text=f"What is number {sample.id}?\nAnswer with a word.")
        for sample in SAMPLES["one"]
    ]
    seen = {}
    for count in (0, 2):
        locator = replace(LOCATOR, paraphrases=count)
        method = CMoE(make_base(), EXPERTS, PROBE, locator, 3)
        trainer = Watching(method)
        half = Paraphrased(samples, 0.5, "training", instructed=True)  # the fit is of others
        method.learn("one", half, trainer)
        seen[count] = trainer.seen["features"]
        assert [*trainer.seen["train"]] == [*half]
    assert seen[0] == samples == seen[2][: len(samples)]
    asked = [sample.text for sample in seen[2][len(samples) :]]
    assert len(asked) == 2 * len(samples)
    assert asked[: len(samples)] != asked[len(samples) :]
    for text, sample in zip(asked, 2 * samples, strict=True):
        assert f"what is number {sample.id}" in text.lower()
