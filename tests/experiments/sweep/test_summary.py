"""What a sweep's file says of the probes: by hand."""

from __future__ import annotations

import json

from support.probings import gains

from cmoe.experiments.sweep.space import Point
from cmoe.experiments.sweep.summary import layers_grown, probes_summary
from cmoe.methods.probe import Gain, Probing

PROBING = Probing(
    older=(1, 1, 1),
    largest=((0.9, 0.1), (0.4, 0.6), (0.2, 0.8)),
    gates=((0.8, 0.2), (0.5, 0.5), (0.3, 0.7)),
    gains=gains(0.02, 0.3, 0.1),
    whole=Gain(0.5, 0.01),
    loss=1.0,
)


def test_layers_by_alpha() -> None:
    """`loss_gain` is 0.02, 0.3, 0.1: mean 0.14, deviation 0.1178."""
    counts = {alpha: layers_grown(PROBING, "loss_gain", alpha) for alpha in (-2, 0, 0.5, 1.5)}
    assert counts == {-2: 0, 0: 1, 0.5: 2, 1.5: 3}


def test_the_winners_threshold_and_who_passed_it() -> None:
    """`frequency` is 0.1, 0.6, 0.8: mean 0.5, deviation 0.2944."""
    found = probes_summary(PROBING, Point(0.5, None, "frequency", 1, 4, "used"))
    assert found["scores"] == [0.1, 0.6, 0.8]
    assert round(found["threshold"], 4) == 0.3528
    assert found["passed"] == [1, 2]
    assert [*found["layers"]] == ["frequency", "excess", "loss_gain"]
    at = dict(zip(found["alphas"], found["layers"]["loss_gain"], strict=True))
    assert (at[-2.0], at[0.0], at[0.5], at[1.5]) == (0, 1, 2, 3)
    assert json.loads(json.dumps(found)) == found


def test_without_a_threshold_the_highest_pass() -> None:
    found = probes_summary(PROBING, Point(None, 1, "loss_gain", 1, 4, "used"))
    assert (found["threshold"], found["passed"]) == (None, [1])
