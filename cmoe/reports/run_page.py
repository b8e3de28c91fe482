"""A run on one page: `report.html` to read and look at, `report.md` for a model card.

Both are made of the run's `report.json` alone. Nothing depends on them: a page that is lost is made
again from that file.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from cmoe.common.files import whole
from cmoe.common.remote.mirror import mirrored
from cmoe.common.run_files import read_object
from cmoe.folder import CARD, PAGE, REPORT
from cmoe.reports.card import Published, front_matter
from cmoe.reports.pages import needing_fields, rendered
from cmoe.reports.run_charts import run_charts
from cmoe.reports.run_numbers import run_numbers

REMEDY = "remove it, and the command that carried the run writes it again"


def write_run_page(run: str | Path) -> None:
    """Write `report.html` and `report.md` into a run's folder, each whole or not at all.

    Pages that show the folder's `report.json` already are left as they are.

    Args:
        run: The run's folder, a path or a URL.

    Raises:
        RunFileError: `report.json` is lost, damaged, or of another version.
        StorageError: The folder can't be used.
    """
    with mirrored(str(run)) as mirror:
        mirror.fetch(REPORT, PAGE, CARD)
        file, page = mirror.folder / REPORT, mirror.folder / PAGE
        data = read_object(file, REMEDY)
        digest = sha256(file.read_bytes()).hexdigest()
        if page.is_file() and digest in page.read_text(encoding="utf-8"):
            return
        with needing_fields(f"{run}/{REPORT}", REMEDY):
            pages = run_pages(data, digest)
        for name, text in pages.items():  # the one that names the digest is written last
            with whole(mirror.folder / name) as beside:
                beside.write_text(text, encoding="utf-8")


def run_pages(data: Mapping[str, Any], digest: str) -> dict[str, str]:
    """The texts of a run's pages, by file name.

    Args:
        data: The contents of its `report.json`.
        digest: Of that file; `report.html` names it.
    """
    shown = {"run": data, "digest": digest, **run_numbers(data)}
    return {
        CARD: front_matter(_published(data)) + rendered(CARD, shown),
        PAGE: rendered(PAGE, {**shown, **run_charts(data, shown)}),
    }


def _published(data: Mapping[str, Any]) -> Published:
    """A run, as its card's front matter names it."""
    config, method = data["config"], data["results"]["method"]
    return Published("store", config["name"], data["base"], config, method, tuple(data["learned"]))
