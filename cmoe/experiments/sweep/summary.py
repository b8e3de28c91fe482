"""What `sweep.json` says of a task: all that its page shows, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cmoe.experiments.sweep.space import Candidate, Point, Probed, Result, distinct, front
from cmoe.methods.probe import Probing, decide
from cmoe.methods.settings import ProbeConfig, Score

ALPHAS = tuple(n / 20 for n in range(-40, 61))
"""Thresholds that the sensitivity is given for."""


def task_summary(
    asked: Sequence[Candidate],
    results: Mapping[str, Result],
    best: Result,
    probed: Probed,
    probe_seconds: float,
) -> dict[str, Any]:
    """What came of a task's sweep.

    Args:
        asked: What every point came to, in order.
        results: By the candidates' names.
        best: The winner's.
        probed: What the probe run found.
        probe_seconds: What it took.
    """
    every = distinct(asked)
    seconds = [r.seconds for r in results.values() if not r.stopped]
    won = next(c for c in every if c.name == best.name)
    return {
        "winner": best.name,
        "accuracy": best.accuracy,
        "parameters": best.parameters,
        "probe_seconds": probe_seconds,
        "trials": len(results),
        "trial_seconds": sum(seconds),
        # Each point would have probed and trained by itself.
        "saved_seconds": {
            "shared probe": probe_seconds * max(0, len(asked) - 1),
            "same candidate": (len(asked) - len(every)) * sum(seconds) / max(1, len(seconds)),
        },
        "probes": probed.probing and probes_summary(probed.probing, won.point),
        "points": [asdict(c.point) | {"candidate": c.name} for c in asked],
        "candidates": [{"name": c.name, **asdict(c), "experts": dict(c.experts)} for c in every],
        "results": [asdict(r) for r in results.values()],
        "front": [r.name for r in front(list(results.values()))],
    }


def probes_summary(probing: Probing, point: Point) -> dict[str, Any]:
    """What the probes said, and what the winner's point makes of it.

    Args:
        probing: What was measured.
        point: The first that came to the winner.

    Returns:
        `scores` by layer as `point` has them, the `threshold` and the layers that `passed` it; and,
        by kind of score, how many `layers` grow at each threshold of `alphas`.
    """
    rule = point.rule(ProbeConfig())
    decision = decide(probing, rule, per_layer=1, costs=[0] * len(probing.older))
    return {
        "scores": list(probing.scores()[point.score]),
        "threshold": decision.threshold,
        "passed": sorted(decision.experts),
        "alphas": list(ALPHAS),
        "layers": {
            score: [layers_grown(probing, score, alpha) for alpha in ALPHAS]
            for score in probing.scores()
        },
    }


def layers_grown(probing: Probing, score: Score, alpha: float) -> int:
    """Layers over the threshold, where no other limit holds."""
    rule = ProbeConfig(rule="relative", score=score, alpha=alpha)
    return len(decide(probing, rule, per_layer=1, costs=[0] * len(probing.older)).experts)
