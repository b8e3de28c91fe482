"""A model card: its front matter, as a hub reads it, and how others load what is published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cmoe.reports.pages import rendered

Kind = Literal["store", "peft", "model"]
LIBRARIES: dict[Kind, str] = {"store": "cmoe", "peft": "peft", "model": "transformers"}
RELATIONS: dict[Kind, str] = {"store": "adapter", "peft": "adapter", "model": "finetune"}
DATASETS = "hf://datasets/"
EXPORTED = "exported.md"
MINI, DEFAULT = "mini", "default"
"""A base and a revision that aren't names of a hub."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Published:
    """What is published.

    Attributes:
        kind: A `store`, adapters for `peft`, or a whole `model`.
        place: What others load: `owner/name` of a hub, or a folder.
        base: Name and revision of the base.
        config: Of the run that has learned it, as far as it is known.
        method: That has learned it.
        tasks: Whose answers it gives.
        folders: Of adapters: those that have one each; none where the place itself has the one.
        license: As its publisher says; None says nothing.
        language: Likewise.
    """

    kind: Kind
    place: str
    base: Mapping[str, str]
    config: Mapping[str, Any]
    method: str
    tasks: tuple[str, ...]
    folders: tuple[str, ...] = ()
    license: str | None = None
    language: str | None = None


def model_card(published: Published, report: str | None) -> str:
    """The text of a card.

    Args:
        published: What it is about.
        report: The run's `report.md`, where what is published is the whole run.
    """
    from huggingface_hub import ModelCard

    mini = published.base["name"] == MINI
    revision = published.base["revision"]
    revision = "" if mini or revision == DEFAULT else revision
    model = published.config.get("model") or {}
    quantization = model.get("quantization")
    values = {
        **vars(published),
        "title": published.place.rstrip("/").rpartition("/")[2],
        "base": published.base["name"],
        "at": f" at revision `{revision}`" if revision else "",
        "mini": mini,
        "code": ("str(MINI_BASE)" if mini else f'"{published.base["name"]}"')
        + (f', revision="{revision}"' if revision else ""),
        "dtype": model.get("dtype", "auto"),
        "quantized": f', quantization="{quantization}"' if quantization else "",
        "fence": "```",
        "report": "" if report is None else ModelCard(report).text.lstrip(),
    }
    return front_matter(published) + rendered(EXPORTED, values)


def front_matter(published: Published) -> str:
    """The YAML at a card's beginning. What isn't known is left out.

    A base or data set counts as the hub's own if it has the form of its names, and is no folder
    here.
    """
    from huggingface_hub import ModelCardData

    base = published.base["name"]
    root = str((published.config.get("data") or {}).get("root", ""))
    datasets = [root.removeprefix(DATASETS).partition("@")[0]] if root.startswith(DATASETS) else []
    on_hub = _HUB_NAME.fullmatch(base) and not Path(base).exists()
    data = ModelCardData(
        language=published.language,
        license=published.license,
        library_name=LIBRARIES[published.kind],
        pipeline_tag="image-text-to-text",
        base_model=base if on_hub else None,
        base_model_relation=RELATIONS[published.kind] if on_hub else None,
        datasets=datasets or None,
        metrics=["accuracy"],
        tags=["cmoe", "continual-learning", published.method],
    )
    return f"---\n{data.to_yaml()}\n---\n"
