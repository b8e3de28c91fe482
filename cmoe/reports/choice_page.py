"""What a choice of layers is worth on one page, `choice.html`; all of it is from `choice.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmoe.common.files import whole
from cmoe.reports.charts.choice import layers_of_sets, losses_of_sets
from cmoe.reports.pages import needing_fields, rendered

PAGE = "choice.html"
ABOUT = {
    "frequency": "layers whose probes take most tokens (paper)",
    "excess": "the same beyond the uniform share",
    "loss_gain": "layers whose probes lower the loss most, each alone",
    "greedy": "layers whose probes lower the loss most, each beside those before it",
    "rule": "the configuration's own rule",
    "all": "every layer, at as small a rank as gives as many parameters",
}


def write_choice_page(folder: Path, data: Mapping[str, Any]) -> None:
    """Write `choice.html` into a study's folder, whole or not at all.

    Args:
        folder: Of the study.
        data: The contents of its `choice.json`.

    Raises:
        RunFileError: A field is missing: an earlier version wrote it.
    """
    remedy = "what was trained stays; a study of another name has a page"
    with needing_fields(folder / "choice.json", remedy):
        page = choice_page(folder.name, data)
    with whole(folder / PAGE) as beside:
        beside.write_text(page, encoding="utf-8")


def choice_page(name: str, data: Mapping[str, Any]) -> str:
    """The page's text; arguments as of `write_choice_page`."""
    shown = {
        "name": name,
        "settings": data["settings"],
        "tasks": [_task(number, task) for number, task in enumerate(data["tasks"])],
        "about": ABOUT,
    }
    return rendered(PAGE, shown)


def _task(number: int, task: Mapping[str, Any]) -> dict[str, Any]:
    by_name = {name: row for row in task["sets"] for name in row["names"]}
    rows = [
        {"name": name, **one, "layers": by_name[name]["layers"], "rank": by_name[name]["rank"]}
        | {"parameters": by_name[name]["parameters"]}
        for name, one in sorted(task["chosen"].items(), key=lambda item: item[1]["loss"])
    ]
    drawn = [row["loss"] for row in task["sets"] if row["drawn"]]
    ordered = {row["name"]: row for row in rows}
    title = f"Held-out loss of {task['task']} by set of layers"
    return {
        **task,
        "rows": rows,
        "drawn": len(drawn),
        "spread": (min(drawn), sorted(drawn)[len(drawn) // 2], max(drawn)),
        "losses": losses_of_sets(f"losses{number}", title, drawn, ordered),
        "taken": layers_of_sets(
            f"layers{number}",
            f"Layers that were chosen for {task['task']}",
            {row["name"]: row["layers"] for row in rows},
            task["layers"],
        ),
        "words": in_words(task),
    }


def in_words(task: Mapping[str, Any]) -> list[str]:
    """What the intervals say, for those who don't read tables."""
    chosen = task["chosen"]
    better = [name for name, one in chosen.items() if one["beats"]]
    worse = [name for name, one in chosen.items() if one["beaten"]]
    equal = [name for name in chosen if name not in (*better, *worse)]
    said = []
    for names, what in (
        (better, "better than a random set of as many layers, beyond noise"),
        (worse, "worse than a random set, beyond noise"),
        (equal, "not to be told from a random set by so many"),
    ):
        if names:
            said.append(f"{', '.join(names)}: {what}.")
    return said
