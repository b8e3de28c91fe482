"""PGKE's rule restated: what probes measured decides where a task grows.

What new experts start from: test_starting_weights.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.probings import gained, gains

from cmoe.data.samples import Sample
from cmoe.methods.probe import Decision, Gain, Probing, decide, split
from cmoe.methods.settings import ProbeConfig

Relative = partial(ProbeConfig, rule="relative")
SCORES = ("frequency", "excess", "loss_gain")


@st.composite
def probings(draw: st.DrawFn, probes: int | None = None) -> Probing:
    """Frequencies and gates of any layers; each layer's add up to 1."""
    layers = draw(st.integers(1, 8))
    own = draw(st.integers(1, 3)) if probes is None else probes
    older = tuple(draw(st.lists(st.integers(0, 4), min_size=layers, max_size=layers)))

    def shares() -> tuple[tuple[float, ...], ...]:
        out = []
        for count in older:
            size = count + own
            weights = draw(st.lists(st.integers(0, 9), min_size=size, max_size=size))
            weights[0] += not sum(weights)
            out.append(tuple(w / sum(weights) for w in weights))
        return tuple(out)

    def gain() -> Gain:
        return Gain(draw(st.integers(-9, 30)) / 16, draw(st.integers(0, 16)) / 16)

    by_layer = tuple(tuple(gain() for _ in range(own)) for _ in range(layers))
    return Probing(older, shares(), shares(), by_layer, gain(), 0.25)


def expected_scores(probing: Probing, score: str) -> list[float]:
    """Method, "PGKE", step 3 and the alternatives below it."""
    if score == "loss_gain":
        return [layer[0].value for layer in probing.gains]
    out = []
    for older, largest in zip(probing.older, probing.largest, strict=True):
        frequency = sum(largest[older:])
        probes = len(largest) - older
        out.append(frequency - (probes / (older + probes) if score == "excess" else 0))
    return out


# Scores


@settings(max_examples=60, deadline=None)
@given(probings())
def test_all_three_scores_are_the_published_ones(probing: Probing) -> None:
    scores = probing.scores()
    assert set(scores) == set(SCORES)
    for name in SCORES:
        np.testing.assert_allclose(scores[name], expected_scores(probing, name), atol=1e-12)
        shared = probing.by_probe(name)  # each layer's score is shared out to its probes
        sizes = zip(probing.largest, probing.older, strict=True)
        assert [len(own) for own in shared] == [len(row) - older for row, older in sizes]
        used = [name != "loss_gain" or f > 0 for f in scores["frequency"]]
        for own, whole, known in zip(shared, scores[name], used, strict=True):
            assert not known or sum(own) == pytest.approx(whole, abs=1e-12)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 4))
def test_a_uniform_routers_excess_is_nothing(older: list[int], probes: int) -> None:
    uniform = tuple((1 / (n + probes),) * (n + probes) for n in older)
    probing = Probing(tuple(older), uniform, uniform, gains(*[0.0] * len(older)), Gain(0, 0), 1.0)
    np.testing.assert_allclose(probing.scores()["excess"], 0, atol=1e-12)


# Decisions


@settings(max_examples=150, deadline=None)
@given(
    probing=probings(),
    score=st.sampled_from(SCORES),
    alpha=st.sampled_from([-1.0, -0.3, 0.0, 0.3, 0.5, 1.0, 2.0]),
    per_layer=st.integers(1, 3),
)
def test_layers_above_the_threshold_grow(
    probing: Probing, score: Any, alpha: float, per_layer: int
) -> None:
    values = np.array(expected_scores(probing, score))
    threshold = values.mean() - alpha * values.std()
    assume(np.abs(values - threshold).min() > 1e-9)
    config = Relative(score=score, alpha=alpha)
    decision = decide(probing, config, per_layer=per_layer, costs=[1] * len(values))
    assert decision.threshold == pytest.approx(threshold, abs=1e-12)
    assert decision.experts == dict.fromkeys(np.flatnonzero(values > threshold), per_layer)
    assert decision.cut == ()


def test_a_score_at_the_threshold_does_not_exceed_it() -> None:
    probing = gained((0,) * 3, 0.25, 0.5, 0.75)
    config = Relative(score="loss_gain", alpha=0.0)
    assert decide(probing, config, per_layer=1, costs=[1] * 3).experts == {2: 1}
    even = gained((0,) * 3, 0.5, 0.5, 0.5)
    for alpha in (0.0, 0.5, 3.0):  # nothing deviates: no layer stands out
        same = decide(even, replace(config, alpha=alpha), per_layer=1, costs=[1] * 3)
        assert same.experts == {}
    # Without a threshold every layer passes, and a budget takes the highest scores.
    free = replace(config, alpha=None)
    assert decide(even, free, per_layer=2, costs=[1] * 3) == Decision({0: 2, 1: 2, 2: 2}, None, ())
    two = decide(probing, replace(free, max_layers=2), per_layer=1, costs=[1] * 3)
    assert (two.experts, two.cut) == ({1: 1, 2: 1}, (0,))


@given(probings())
def test_a_probing_comes_back_from_its_json(probing: Probing) -> None:
    assert Probing.of(json.loads(json.dumps(asdict(probing)))) == probing


@settings(max_examples=100, deadline=None)
@given(
    probing=probings(),
    score=st.sampled_from(SCORES),
    count=st.sampled_from(["fixed", "per_probe"]),
    max_layers=st.none() | st.integers(0, 5),
    max_added=st.none() | st.integers(0, 40),
    costs=st.lists(st.integers(1, 12), min_size=8, max_size=8),
)
def test_a_budget_cuts_from_the_lowest_score(
    probing: Probing,
    score: Any,
    count: Any,
    max_layers: int | None,
    max_added: int | None,
    costs: list[int],
) -> None:
    costs = costs[: len(probing.older)]
    free = Relative(score=score, count=count)
    config = replace(free, max_layers=max_layers, max_added_parameters=max_added)
    whole = decide(probing, free, per_layer=2, costs=costs).experts
    decision = decide(probing, config, per_layer=2, costs=costs)
    kept, cut = decision.experts, decision.cut
    # Every layer that passed either grows as much as without a budget, or is cut.
    assert {**kept, **{layer: whole[layer] for layer in cut}} == whole
    assert not set(kept) & set(cut)
    values = probing.scores()[score]
    assert min((values[i] for i in kept), default=9) >= max((values[i] for i in cut), default=-9)
    spent = sum(n * costs[layer] for layer, n in kept.items())
    assert max_layers is None or len(kept) <= max_layers
    assert max_added is None or spent <= max_added
    if cut:  # and no more is cut than needs be: the next in line would break a budget
        best = min(cut, key=lambda layer: (-values[layer], layer))
        full = max_layers is not None and len(kept) == max_layers
        assert full or (max_added is not None and spent + whole[best] * costs[best] > max_added)


def test_ties_are_cut_from_the_top_layer_whatever_the_order_of_costs() -> None:
    probing = gained((0,) * 5, 0.5, 1.0, 0.0, 1.0, 1.0)
    config = Relative(score="loss_gain", alpha=0.0, max_layers=2)
    decision = decide(probing, config, per_layer=1, costs=[1] * 5)
    assert (decision.experts, decision.cut) == ({1: 1, 3: 1}, (4,))
    cheap = replace(config, max_layers=None, max_added_parameters=5)
    # Layer 3 is too dear; layer 4 would fit, but comes behind it.
    decision = decide(probing, cheap, per_layer=1, costs=[1, 3, 1, 3, 1])
    assert (decision.experts, decision.cut) == ({1: 1}, (3, 4))
    exact = replace(cheap, max_added_parameters=6)
    assert decide(probing, exact, per_layer=1, costs=[1, 3, 1, 3, 1]).experts == {1: 1, 3: 1}
    for nothing in ({"max_layers": 0}, {"max_added_parameters": 0}):
        none = decide(probing, replace(config, **nothing), per_layer=1, costs=[1] * 5)
        assert (none.experts, none.cut) == ({}, (1, 3, 4))


@settings(max_examples=100, deadline=None)
@given(probing=probings(probes=3), score=st.sampled_from(["frequency", "excess"]))
def test_per_probe_adds_as_many_as_pass_alone(probing: Probing, score: Any) -> None:
    config = Relative(score=score, count="per_probe", alpha=0.5)
    decision = decide(probing, config, per_layer=7, costs=[1] * len(probing.older))
    values = np.array(expected_scores(probing, score))
    threshold = values.mean() - 0.5 * values.std()
    alone = []
    for older, largest in zip(probing.older, probing.largest, strict=True):
        baseline = 1 / len(largest) if score == "excess" else 0
        alone.append(np.array(largest[older:]) - baseline)
    near = np.concatenate([values, *alone]) - threshold
    assume(np.abs(near).min() > 1e-9)
    for layer in np.flatnonzero(values > threshold):
        # A layer that passed grows, even where its probes pass only together.
        assert decision.experts[layer] == max(1, (alone[layer] > threshold).sum())
    assert set(decision.experts) == set(np.flatnonzero(values > threshold))


@settings(max_examples=40, deadline=None)
@given(probing=probings(), alphas=st.lists(st.floats(-2, 2), min_size=2, max_size=4))
def test_one_probing_serves_every_rule(probing: Probing, alphas: Sequence[float]) -> None:
    before, costs = deepcopy(probing), [1] * len(probing.older)
    grown: list[set[int]] = []
    for alpha in sorted(alphas):
        for count, max_layers in (("fixed", None), ("per_probe", 1)):
            config = Relative(alpha=alpha, count=count, max_layers=max_layers)  # type: ignore[arg-type]
            decision = decide(probing, config, per_layer=1, costs=costs)
            assert probing == before
            if count == "fixed":
                grown.append(set(decision.experts))
    # The larger alpha, the lower the threshold: more layers grow, never others.
    assert all(fewer <= more for fewer, more in pairwise(grown))


# By gain


@settings(max_examples=150, deadline=None)
@given(
    probing=probings(),
    min_gain=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    count=st.sampled_from(["fixed", "per_probe"]),
)
def test_a_layer_grows_by_gain_where_it_is_real_and_not_small(
    probing: Probing, min_gain: float, count: Any
) -> None:
    config = ProbeConfig(rule="gain", min_gain=min_gain, count=count)
    decision = decide(probing, config, per_layer=2, costs=[1] * len(probing.older))
    (whole, error), least = probing.whole, min_gain * max(probing.whole.value, 0)
    assert decision.threshold == least

    def passes(gain: Gain) -> bool:
        return gain.value > gain.error and gain.value > least

    if whole <= 3 * error:
        assert decision.experts == {}, "nothing is gained: the router alone"
        return
    expected = [layer for layer, each in enumerate(probing.gains) if passes(each[0])]
    values = [each[0].value for each in probing.gains]
    assert [*decision.experts] == (expected or [values.index(max(values))])
    for layer, number in decision.experts.items():
        more = [passes(gain) for gain in probing.gains[layer][1:]]
        following = [*more, False].index(False)
        assert number == (1 + following if count == "per_probe" else 2)


def test_a_budget_takes_the_layers_that_gain_most() -> None:
    probing = gained((1,) * 4, 0.2, 0.5, 0.1, 0.4, error=0.05)
    config = ProbeConfig(rule="gain", max_layers=2)
    decision = decide(probing, config, per_layer=1, costs=[1] * 4)
    assert (decision.experts, decision.cut) == ({1: 1, 3: 1}, (0, 2))


def test_probes_that_only_do_harm_add_nothing() -> None:
    """The gains of a task that was learned before, under another name."""
    probing = gained((2,) * 6, -0.005, -0.011, -0.036, -0.02, -0.008, -0.014, error=0.004)
    config = ProbeConfig(rule="gain")
    assert decide(probing, config, per_layer=1, costs=[1] * 6).experts == {}
    relative = replace(config, rule="relative", score="loss_gain", alpha=1.5)
    assert decide(probing, relative, per_layer=1, costs=[1] * 6).experts, "which can't say none"


# By depth


@pytest.mark.parametrize(
    ("rule", "layers"),
    [
        ("first", {0: 1, 1: 1, 2: 1}),
        ("middle", {2: 1, 3: 1, 4: 1}),
        ("last", {5: 1, 6: 1, 7: 1}),
        ("even", {1: 1, 4: 1, 6: 1}),
    ],
)
def test_layers_by_depth(rule: Any, layers: dict[int, int]) -> None:
    config = ProbeConfig(rule=rule, max_layers=3)
    probing = gained((1,) * 8, *range(8))
    decision = decide(probing, config, per_layer=1, costs=[1] * 8)
    assert (decision.experts, decision.threshold, decision.cut) == (layers, None, ())
    every = replace(config, max_layers=20)
    assert [*decide(probing, every, per_layer=1, costs=[1] * 8).experts] == [*range(8)]
    assert decide(probing, replace(config, max_layers=0), per_layer=1, costs=[1] * 8).experts == {}


def test_random_layers_are_drawn_by_the_seed_whatever_was_measured() -> None:
    config = ProbeConfig(rule="random", max_layers=3)

    def drawn(seed: int, *values: float) -> list[int]:
        probing = gained((1,) * 8, *values)
        return [*decide(probing, config, per_layer=1, costs=[1] * 8, seed=seed).experts]

    every = [drawn(seed, *range(8)) for seed in range(40)]
    assert every == [drawn(seed, *range(8, 0, -1)) for seed in range(40)]
    assert {len(each) for each in every} == {3}
    assert {layer for each in every for layer in each} == set(range(8))


# The split


def samples(count: int) -> list[Sample]:
    return [Sample(str(i), "?", "!") for i in range(count)]


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(2, 300),
    fraction=st.sampled_from([0.01, 0.1, 0.25, 0.5]),
    most=st.integers(1, 40),
    seed=st.integers(0, 50),
)
def test_the_split_is_disjoint_and_as_large_as_asked_for(
    count: int, fraction: float, most: int, seed: int
) -> None:
    all_, config = samples(count), ProbeConfig(fraction=fraction, max_samples=most)
    train, measure = split(all_, config, seed)
    assert not set(train) & set(measure)
    assert set(train) | set(measure) <= set(all_)
    assert len(set(train)) == len(train)
    assert len(set(measure)) == len(measure)
    assert 0 <= len(measure) - len(train) <= 1
    wanted = min(max(1, fraction * count), most)
    assert abs(len(measure) - wanted) <= 0.5
    assert (train, measure) == split(all_, config, seed)


def test_other_seeds_choose_other_samples() -> None:
    config = ProbeConfig(fraction=0.1)
    chosen = {tuple(s.id for s in split(samples(100), config, seed)[0]) for seed in range(6)}
    assert len(chosen) == 6
    train, measure = split(samples(100), config, 0)
    assert [s.id for s in train + measure] != [str(i) for i in range(20)], "not the file's first"


# Its settings


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"fraction": 0.0}, "more than 0 and at most 0.5"),
        ({"fraction": 0.6}, "more than 0 and at most 0.5"),
        ({"experts": 0}, "probe.experts is 0; at least 1"),
        ({"max_samples": 0}, "probe.max_samples is 0; at least 1"),
        ({"max_layers": -1}, "probe.max_layers is -1; at least 0, or null"),
        ({"max_added_parameters": -1}, "at least 0, or null"),
        ({"min_gain": -0.1}, "probe.min_gain is -0.1; at least 0"),
        ({"rule": "even"}, "probe.rule is even; it needs probe.max_layers, its count"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        ProbeConfig(**changes)
