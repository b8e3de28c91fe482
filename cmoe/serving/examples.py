"""Questions to try on the page: one of each task of the mini CoIN."""

from __future__ import annotations

import base64
import io
from functools import cache

from PIL import Image

from cmoe.data.settings import TASKS
from cmoe.mini.tasks import make_sample


@cache
def examples() -> list[dict[str, str]]:
    """Task, question and image of each (a data URL; empty where the question has none)."""
    found = []
    for task in TASKS:
        sample = make_sample(task, "page", 0)
        found.append(
            {
                "task": task,
                "text": sample.text,
                "picture": "" if sample.image is None else _data_url(Image.fromarray(sample.image)),
            }
        )
    return found


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
