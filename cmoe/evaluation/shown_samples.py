"""A few test samples of a task with their answers, as a report shows them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from io import BytesIO
from typing import Any

from cmoe.data.boxes import Box
from cmoe.data.samples import Picture, Sample, Task
from cmoe.evaluation.predictions import Predictions
from cmoe.modeling.routers import BASE
from cmoe.tasks.registry import scored
from cmoe.tasks.scorer import Target

SHOWN = 4
"""Samples shown of each task."""
THUMBNAIL = 160
"""Pixels of a sample's image at most."""
EXPECTED, SAID = "#2563eb", "#f97316"
"""Colours of boxes."""

_COORDINATE = re.compile(r"\d*\.?\d+")


def shown_samples(
    task: Task,
    targets: Mapping[str, Target],
    predictions: Predictions,
    digests: Mapping[int, str],
    learned: Sequence[Task],
    found: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A few test samples, chosen by a hash: half of them answered wrong, where there are.

    Where samples have no scores of their own, the hash alone chooses.

    Args:
        task: One of those learned.
        targets: What its test samples are scored against, by id.
        predictions: Of the whole run.
        digests: Of every primitive so far, and of the base at -1.
        learned: The tasks so far.
        found: The run's `matrix.json`.

    Returns:
        Of each: `text`, `expected`, `said`, its `score` from 0 to 1 or None, `by` whom it was
        answered (a task, or the base alone), whether that was `astray` and the sample called
        `unknown`, its `images` as data URIs, and whether it is of a known size (`sized`), so that
        boxes are drawn.
    """
    stage = predictions.stages[len(learned) - 1][task.name]
    wanted = list(targets.values())
    texts: list[str | None] = [
        predictions.text(task.name, sample.id, digests[by])
        for sample, by in zip(task.test, stage.by, strict=True)
    ]
    scores = scored(task, found["scoring"], texts, wanted).each
    own = found["tasks"].index(task.name)
    locates = found["location"] is not None
    return [
        {
            "text": task.test[n].text,
            "expected": ", ".join(dict.fromkeys(wanted[n].answers)) or wanted[n].answer,
            "said": texts[n],
            "score": None if scores is None else scores[n],
            "by": "base alone" if stage.by[n] == BASE else learned[stage.by[n]].name,
            "astray": locates and stage.by[n] != own,
            "unknown": stage.unknown[n],
            "images": _images(task.test[n], wanted[n].answer, texts[n]),
            "sized": task.test[n].size is not None,
        }
        for n in _chosen(task, scores)
    ]


def _chosen(task: Task, scores: Sequence[float] | None) -> list[int]:
    """Numbers of the samples shown, in the order of their hash."""

    def draw(number: int) -> bytes:
        return sha256(f"{task.name}/{task.test[number].id}".encode()).digest()

    order = sorted(range(len(task.test)), key=draw)
    if scores is None:
        return order[:SHOWN]
    right = [n for n in order if scores[n] >= 0.5]
    wrong = [n for n in order if scores[n] < 0.5]
    half = max(SHOWN // 2, SHOWN - len(right))
    chosen = wrong[:half] + right[: SHOWN - len(wrong[:half])]
    return sorted(chosen, key=order.index)


def _images(sample: Sample, expected: str, said: str | None) -> list[str]:
    """The images of a sample's question as data URIs; with the boxes, where boxes are asked for."""
    boxes = {
        colour: box
        for colour, text in ((EXPECTED, expected), (SAID, said or ""))
        if (box := _box(text, sample.size)) is not None
    }
    return [_thumbnail(image, boxes) for image in sample.asked_about]


def _box(text: str, size: tuple[int, int] | None) -> Box | None:
    """Four numbers as parts of the image; None for other text, and where no size is known."""
    numbers = [float(number) for number in _COORDINATE.findall(text)]
    if size is None or len(numbers) != 4:
        return None
    width, height = size if max(numbers) > 1 else (1, 1)
    left, top, right, bottom = numbers
    return left / width, top / height, right / width, bottom / height


def _thumbnail(file: Picture, boxes: Mapping[str, Box]) -> str:
    """A small image as a data URI.

    Args:
        file: The image.
        boxes: In parts of the image, by colour; those without a shape are left out.
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
