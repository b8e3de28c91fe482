"""What the page shows of a run: its figures, and some of its samples with their pictures."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from cmoe.data.boxes import Box
from cmoe.data.samples import Sample, StoredPicture, Task
from cmoe.evaluation.run import Run
from cmoe.modeling.routers import BASE
from cmoe.reports import charts as figures
from cmoe.tasks.scorers import score

SHOWN = 4
"""Samples shown of each task."""
THUMBNAIL = 160
"""Pixels of a sample's picture at most."""
EXPECTED, SAID = "#2563eb", "#f97316"
"""Colours of boxes."""

_COORDINATE = re.compile(r"\d*\.?\d+")


def pictures(run: Run, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything of the page that is drawn: SVGs by name, and samples by task.

    Args:
        run: The run.
        facts: Its figures in numbers.
    """
    found, names = run.found, run.names
    zero_shot = found["zero_shot"]
    shown: dict[str, Any] = {
        "matrix": _matrix("located", "Accuracy matrix", found, zero_shot),
        "oracle_matrix": None,
        "decomposition": None,
        "curves": [
            figures.accuracy_curve(
                f"curve{j}",
                f"Accuracy on {name} after each task",
                facts["located"],
                j,
                zero_shot[j] if zero_shot else None,
            )
            for j, name in enumerate(names)
        ],
        "losses": _losses(run),
        "parameter_bars": figures.stacked_bars(
            "parameters",
            "Parameters by task and part",
            {row["task"]: row["parts"] for row in facts["parameters"]},
            facts["parts"],
            "parameters",
        ),
        "seconds_bars": figures.stacked_bars(
            "seconds", "Seconds by task and phase", facts["seconds"], facts["spent"], "seconds"
        )
        if facts["spent"]
        else None,
        "samples": {task.name: _samples(run, task) for task in run.tasks},
        "experts": _experts(run),
        "location": _location(run) if run.locates else None,
    }
    if found["oracle"]:
        shown["oracle_matrix"] = _matrix("oracle", "Accuracy matrix, oracle", found, zero_shot)
        shown["decomposition"] = figures.decomposition(
            "decomposition",
            "Zero-shot, oracle and located accuracy of each task",
            names,
            zero_shot[: len(names)] if zero_shot else None,
            found["oracle"][-1][: len(names)],
            facts["located"][-1],
        )
    return shown


def _matrix(
    key: str, label: str, found: Mapping[str, Any], zero_shot: Sequence[float] | None
) -> str:
    first = [zero_shot] if zero_shot else []
    rows = found["tasks"][: len(found[key])]
    return figures.heat_map(
        f"matrix-{key}",
        label,
        [*first, *found[key]],
        [*(["base alone"] if first else []), *rows],
        found["tasks"],
        axes=("tested on", "after learning"),
        apart=len(first),
    )


def _losses(run: Run) -> dict[str, str]:
    """Curves by training: the tasks' own, and their probes'."""
    phases = dict.fromkeys(phase for note in run.notes for phase in note.get("loss", {}))
    curves: dict[str, str] = {}
    for phase in sorted(phases, key=lambda name: name != "train"):
        losses = {
            task.name: note["loss"][phase]
            for task, note in zip(run.tasks, run.notes, strict=True)
            if note.get("loss", {}).get(phase)
        }
        if losses:
            curves[phase] = figures.loss_curves(
                f"loss-{len(curves)}", f"Loss while in {phase}", losses, run.names
            )
    return curves


def _experts(run: Run) -> dict[str, Any] | None:
    """Where experts were added, why there, and who uses them; None where there are none."""
    decisions = [record.decision for record in run.records]
    if not all("usage" in d and "experts" in d for d in decisions):
        return None
    names, layers = run.names, range(len(decisions[0]["usage"]))
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
    hues = [figures.hue(t) for t in range(len(names))]
    return {
        "count": sum(map(sum, added)),
        "cut": any(d.get("cut") for d in decisions),
        "growth": figures.heat_map(
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
            for layer, cosine in enumerate(run.found["expert_similarity"])
            if cosine is not None
        ],
        "probes": [_probe(t, d, names[t]) for t, d in enumerate(decisions) if "scores" in d],
        "reuse": figures.heat_map(
            "reuse",
            "Whose experts each task's tokens use",
            [_reuse(shares, owners, t) for t, shares in enumerate(usage)],
            names,
            names,
            axes=("experts added by", "tokens of"),
            hues=hues,
        ),
        "routing": figures.routing_map(
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
    grown, cut = [int(layer) for layer in decision["experts"]], decision["cut"]
    bars = figures.probe_bars(
        f"probe{task}",
        f"Probe scores of {name} by layer",
        scores[rule["score"]],
        decision["threshold"],
        grown,
        cut,
        rule["score"],
    )
    layers = range(len(scores[rule["score"]]))
    return {
        "task": name,
        "bars": bars,
        "rule": rule,
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


def _location(run: Run) -> dict[str, Any]:
    counts, names = run.found["location"]["confusion"], run.names
    histograms = []
    for t, name in enumerate(names):
        scores = run.last[name].scores
        own = [row[t] for row in scores]
        other = [min(s for j, s in enumerate(row) if j != t) for row in scores if len(row) > 1]
        label = f"Locator scores of {name}'s samples"
        histograms.append(figures.score_histogram(f"histogram{t}", label, own, other, t))
    return {
        "confusion": figures.heat_map(
            "confusion",
            "Location confusion",
            [[100 * n / sum(row) for n in row] for row in counts],
            names,
            names,
            axes=("located as", "samples of"),
            texts=[[str(n or "·") for n in row] for row in counts],
        ),
        "histograms": histograms,
    }


# Samples


def _samples(run: Run, task: Task) -> list[dict[str, Any]]:
    """A few test samples, chosen by a hash: half of them answered wrong, where there are."""
    stage, digests = run.last[task.name], [record.digest for record in run.records]
    targets = list(run.targets[task.name].values())
    texts: list[str | None] = [
        run.predictions.text(task.name, s.id, run.base.digest if by == BASE else digests[by])
        for s, by in zip(task.test, stage.by, strict=True)
    ]
    scores = score(task.name, run.found["scoring"], texts, targets)

    def draw(number: int) -> bytes:
        return sha256(f"{task.name}/{task.test[number].id}".encode()).digest()

    order = sorted(range(len(texts)), key=draw)
    right = [n for n in order if scores[n] >= 0.5]
    wrong = [n for n in order if scores[n] < 0.5]
    half = max(SHOWN // 2, SHOWN - len(right))
    chosen = wrong[:half] + right[: SHOWN - len(wrong[:half])]
    return [
        {
            "sample": task.test[n],
            "expected": ", ".join(dict.fromkeys(targets[n].answers)) or targets[n].answer,
            "said": texts[n],
            "score": scores[n],
            "by": "base alone" if stage.by[n] == BASE else run.names[stage.by[n]],
            "astray": run.locates and stage.by[n] != run.names.index(task.name),
            "unknown": stage.unknown[n],
            "picture": _picture(task.test[n], targets[n].answer, texts[n]),
        }
        for n in sorted(chosen, key=order.index)
    ]


def _picture(sample: Sample, expected: str, said: str | None) -> str | None:
    """The sample's picture as a data URI; with the boxes, where boxes are asked for."""
    if sample.image is None:
        return None
    boxes = {
        colour: box
        for colour, text in ((EXPECTED, expected), (SAID, said or ""))
        if (box := _box(text, sample.size)) is not None
    }
    return _thumbnail(sample.image, boxes)


def _box(text: str, size: tuple[int, int] | None) -> Box | None:
    """Four numbers as parts of the picture; None for other text, and where no size is known."""
    numbers = [float(number) for number in _COORDINATE.findall(text)]
    if size is None or len(numbers) != 4:
        return None
    width, height = size if max(numbers) > 1 else (1, 1)
    left, top, right, bottom = numbers
    return left / width, top / height, right / width, bottom / height


def _thumbnail(file: Path | StoredPicture, boxes: Mapping[str, Box]) -> str:
    """A small picture as a data URI.

    Args:
        file: The picture.
        boxes: In parts of the picture, by colour; those without a shape are left out.
    """
    from PIL import ImageDraw, ImageOps

    from cmoe.data.image_limits import ImageLimits
    from cmoe.data.images import load_image

    image = ImageOps.contain(load_image(file, ImageLimits()), (THUMBNAIL, THUMBNAIL))
    draw = ImageDraw.Draw(image)
    for colour, (left, top, right, bottom) in boxes.items():
        corners = left * image.width, top * image.height, right * image.width, bottom * image.height
        if left < right and top < bottom:
            draw.rectangle(corners, outline=colour, width=3)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
