"""Intervals of Last and of differences, held against what statistics books say of simple cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cmoe.experiments.comparison.intervals import in_words, last_interval, paired

TASKS = ("A", "B")


def drawn(
    rights: dict[str, float], seeds: tuple[int, ...] = (0,), count: int = 400, salt: int = 0
) -> dict[int, dict[str, Any]]:
    """Every sample is right so often, whatever the others are."""
    rng = np.random.default_rng(salt)
    return {
        s: {t: (rng.random(count) < p).astype(float).tolist() for t, p in rights.items()}
        for s in seeds
    }


def interval(scores: dict[int, dict[str, Any]]) -> list[float]:
    found = last_interval(scores, TASKS)
    assert found is not None
    return found


def test_of_one_seed_the_interval_is_that_of_a_mean_of_shares() -> None:
    scores = drawn({"A": 0.5, "B": 0.8})
    low, high = interval(scores)
    shares = [np.mean(scores[0][task]) for task in TASKS]
    error = 100 * math.sqrt(sum(p * (1 - p) / 400 for p in shares)) / 2
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    assert (high + low) / 2 == pytest.approx(100 * np.mean(shares), abs=0.3)


def test_tasks_count_alike_whatever_their_size() -> None:
    scores: Any = {0: {"A": [1.0] * 900, "B": [0.0] * 10}}
    found = paired("x", {"x": scores, "y": {0: {"A": [0.0] * 900, "B": [0.0] * 10}}}, TASKS)
    assert found["others"]["y"]["difference"] == 50
    assert found["others"]["y"]["interval"] == [50, 50]
    assert found["others"]["y"]["tasks"]["B"]["difference"] == 0


def test_on_the_same_samples_a_difference_is_surer_than_two_means() -> None:
    a = drawn({"A": 0.5, "B": 0.5}, (0, 1, 2))
    b = {
        s: {t: [max(0.0, v - (n % 25 == 0)) for n, v in enumerate(row)] for t, row in each.items()}
        for s, each in a.items()
    }
    one = paired("a", {"a": a, "b": b}, TASKS)["others"]["b"]
    assert one["beyond"]
    assert one["difference"] > 0
    low, high = one["interval"]
    first, second = interval(a), interval(b)
    assert high - low < 0.5 * (first[1] - first[0])
    assert second[1] > first[0], "while the two intervals overlap"


def test_other_seeds_are_a_part_of_the_noise() -> None:
    """Seeds that differ by much more than samples do decide the width."""
    levels = {0: 0.2, 1: 0.5, 2: 0.8}
    scores = {s: drawn({"A": p, "B": p}, (s,), salt=s)[s] for s, p in levels.items()}
    low, high = interval(scores)
    # The mean of three seeds drawn from three: deviation sqrt(2/3) * 30 / sqrt(3) points.
    assert high - low > 2 * 1.5 * math.sqrt(2 / 3) * 30 / math.sqrt(3)
    same = {s: drawn({"A": 0.5, "B": 0.5}, (s,), salt=s)[s] for s in levels}
    narrow = interval(same)
    assert narrow[1] - narrow[0] < 0.3 * (high - low)


def test_words_say_what_is_beyond_noise() -> None:
    a = drawn({"A": 0.9, "B": 0.9}, (0, 1))
    others = {
        "same": drawn({"A": 0.9, "B": 0.9}, (0, 1), salt=1),
        "poor": drawn({"A": 0.2, "B": 0.2}, (0, 1), salt=2),
        "other_seeds": drawn({"A": 0.2, "B": 0.2}, (7,)),
    }
    first, second = in_words(paired("a", {"a": a, **others}, TASKS))
    assert first.startswith("a and poor: +69.3 points (+")
    assert first.endswith("better beyond noise")
    assert second.startswith("a and same: ")
    assert second.endswith("not to be told from noise")
    (back,) = in_words(paired("poor", {"poor": others["poor"], "a": a}, TASKS))
    assert back.endswith("worse beyond noise")


def test_a_task_without_scores_has_no_part_in_what_is_told_of_noise() -> None:
    """Its figure isn't a mean over samples, so that drawing samples anew says nothing of it."""
    a, b = drawn({"A": 0.9}, (0, 1)), drawn({"A": 0.2}, (0, 1), salt=1)
    assert last_interval(a, ["A", "Captions"]) is None
    found = paired("a", {"a": a, "b": b}, ["A", "Captions"])
    assert found["without"] == ["Captions"]
    assert found["others"]["b"]["tasks"].keys() == {"A"}
    (line,) = in_words(found)
    assert line.startswith("a and b, without Captions: +7")
    assert paired("a", {"a": {0: {}}, "b": {0: {}}}, ["Captions"])["others"] == {}
