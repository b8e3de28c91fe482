"""The charts of a run's page, each an SVG by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmoe.reports.charts.accuracy import accuracy_curve, decomposition
from cmoe.reports.charts.costs import loss_curves, stacked_bars
from cmoe.reports.charts.drawing import hue
from cmoe.reports.charts.growth import probe_bars, routing_map
from cmoe.reports.charts.location import score_histogram
from cmoe.reports.charts.matrices import heat_map


def run_charts(data: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Everything of the page that is drawn.

    Args:
        data: The contents of the run's `report.json`.
        numbers: What the page says in numbers.
    """
    found, names = data["results"], data["learned"]
    zero_shot = found["zero_shot"]
    shown: dict[str, Any] = {
        "matrix": _matrix("located", "Accuracy matrix", found, zero_shot),
        "oracle_matrix": None,
        "decomposition": None,
        "curves": [
            accuracy_curve(
                f"curve{j}",
                f"Accuracy on {name} after each task",
                numbers["located"],
                j,
                zero_shot[j] if zero_shot else None,
            )
            for j, name in enumerate(names)
        ],
        "losses": _losses(data),
        "parameter_bars": stacked_bars(
            "parameters",
            "Parameters by task and part",
            {row["task"]: row["parts"] for row in numbers["parameters"]},
            numbers["parts"],
            "parameters",
        ),
        "seconds_bars": stacked_bars(
            "seconds", "Seconds by task and phase", numbers["seconds"], numbers["spent"], "seconds"
        )
        if numbers["spent"]
        else None,
        "experts": _experts(data),
        "location": _location(data) if data["location"] else None,
    }
    if found["oracle"]:
        shown["oracle_matrix"] = _matrix("oracle", "Accuracy matrix, oracle", found, zero_shot)
        shown["decomposition"] = decomposition(
            "decomposition",
            "Zero-shot, oracle and located accuracy of each task",
            names,
            zero_shot[: len(names)] if zero_shot else None,
            found["oracle"][-1][: len(names)],
            numbers["located"][-1],
        )
    return shown


def _matrix(
    key: str, label: str, found: Mapping[str, Any], zero_shot: Sequence[float] | None
) -> str:
    first = [zero_shot] if zero_shot else []
    rows = found["tasks"][: len(found[key])]
    return heat_map(
        f"matrix-{key}",
        label,
        [*first, *found[key]],
        [*(["base alone"] if first else []), *rows],
        found["tasks"],
        axes=("tested on", "after learning"),
        apart=len(first),
    )


def _losses(data: Mapping[str, Any]) -> dict[str, str]:
    """Curves by phase: the tasks' own training, and their probes'."""
    return {
        phase: loss_curves(f"loss-{number}", f"Loss while in {phase}", losses, data["learned"])
        for number, (phase, losses) in enumerate(data["losses"].items())
    }


def _experts(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where experts were added, why there, and who uses them; None where there are none."""
    decisions = [record["decision"] for record in data["records"]]
    if not all("usage" in d and "experts" in d for d in decisions):
        return None
    names, layers = data["learned"], range(len(decisions[0]["usage"]))
    added = [[int(d["experts"].get(str(n), 0)) for d in decisions] for n in layers]
    owners = [[t for t, count in enumerate(row) for _ in range(count)] for row in added]
    usage = [d["usage"] for d in decisions]
    texts = [
        [
            "cut" if n in d.get("cut", ()) else str(count or "·")
            for d, count in zip(decisions, row, strict=True)
        ]
        for n, row in zip(layers, added, strict=True)
    ]
    hues = [hue(t) for t in range(len(names))]
    return {
        "count": sum(map(sum, added)),
        "cut": any(d.get("cut") for d in decisions),
        "growth": heat_map(
            "growth",
            "Experts added by layer and task",
            added,
            [str(n) for n in layers],
            names,
            axes=("added by", "layer"),
            texts=texts,
            hues=hues,
            peak=max(map(max, added)),
            low=26,
        ),
        "similarity": [
            (layer, cosine)
            for layer, cosine in enumerate(data["results"]["expert_similarity"])
            if cosine is not None
        ],
        "probes": [_probe(t, d, names[t]) for t, d in enumerate(decisions) if "scores" in d],
        "reuse": heat_map(
            "reuse",
            "Whose experts each task's tokens use",
            [_reuse(shares, owners, t) for t, shares in enumerate(usage)],
            names,
            names,
            axes=("experts added by", "tokens of"),
            hues=hues,
        ),
        "routing": routing_map(
            "routing", "Share of tokens by expert, layer and task", usage, owners, names
        ),
    }


def _reuse(
    usage: Sequence[Sequence[float]], owners: Sequence[Sequence[int]], task: int
) -> list[float | None]:
    """Percent of a task's tokens, over all layers with experts, by the task that added theirs."""
    shares = [0.0] * (task + 1)
    for layer, of in zip(usage, owners, strict=True):
        for share, owner in zip(layer, of, strict=False):
            shares[owner] += share
    whole = sum(shares) or 1.0
    return [100 * share / whole for share in shares]


def _probe(task: int, decision: Mapping[str, Any], name: str) -> dict[str, Any]:
    rule, scores = decision["rule"], decision["scores"]
    kind = rule.get("rule", "relative")  # runs of before there were others say none
    score = "loss_gain" if kind == "gain" else rule["score"]
    grown, cut = [int(layer) for layer in decision["experts"]], decision["cut"]
    bars = probe_bars(
        f"probe{task}",
        f"Probe scores of {name} by layer",
        scores[score],
        decision["threshold"],
        grown,
        cut,
        score,
    )
    layers = range(len(scores[score]))
    return {
        "task": name,
        "bars": bars,
        "score": score,
        "said": _rule_in_words(kind, rule),
        "builds_on": decision.get("builds_on"),
        "threshold": decision["threshold"],
        "scores": [
            {
                **{kind: values[n] for kind, values in scores.items()},
                "older": decision["older"][n],
                "fate": "cut" if n in cut else "grown" if n in grown else "",
            }
            for n in layers
        ],
    }


def _rule_in_words(kind: str, rule: Mapping[str, Any]) -> str:
    """What the dashed line is, or what decided without one."""
    if kind == "gain":
        return (
            f"the dashed line is {100 * rule['min_gain']:g} percent of what all probes gain, which "
            "a layer has to exceed, and its own standard error"
        )
    if kind != "relative":
        return f"layers were chosen by depth or chance ({kind}), whatever was measured"
    if rule["alpha"] is None:
        return "no threshold was set, the budgets alone decided"
    minus = "\N{MINUS SIGN}"
    return (
        f"the dashed line is the threshold, mean {minus} {rule['alpha']} deviations over the layers"
    )


def _location(data: Mapping[str, Any]) -> dict[str, Any]:
    counts, names = data["results"]["location"]["confusion"], data["learned"]
    return {
        "confusion": heat_map(
            "confusion",
            "Location confusion",
            [[100 * n / sum(row) for n in row] for row in counts],
            names,
            names,
            axes=("located as", "samples of"),
            texts=[[str(n or "·") for n in row] for row in counts],
        ),
        "histograms": [
            score_histogram(
                f"histogram{t}", f"Locator scores of {name}'s samples", data["location"][name], t
            )
            for t, name in enumerate(names)
        ],
    }
