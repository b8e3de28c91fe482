"""Questions to try on the page: one of each task of the mini CoIN, as a person would ask it."""

from __future__ import annotations

import base64
import io
from functools import cache

from PIL import Image

from cmoe.common.instructions import Instructions
from cmoe.data.settings import TASKS
from cmoe.mini.tasks import make_sample

KNOWN = 20  # prompts of a task that tell its instructions


@cache
def examples() -> list[dict[str, str]]:
    """Task, question and image of each (a data URL; empty where the question has none)."""
    found = []
    for task in TASKS:
        sample = make_sample(task, "page", 0)
        prompts = [make_sample(task, "train", index).text for index in range(KNOWN)]
        found.append(
            {
                "task": task,
                "text": Instructions.of(prompts).split(sample.text)[1],
                "picture": "" if sample.image is None else _data_url(Image.fromarray(sample.image)),
            }
        )
    return found


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
