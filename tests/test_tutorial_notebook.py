"""The notebook runs from its first cell to its last, and says what it says in the repository."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.paths import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
MINUTES = 8


def said(notebook: nbformat.NotebookNode) -> list[str]:
    """What each cell of code printed."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(output["text"] for output in cell.outputs) for cell in cells]


@pytest.mark.ray
def test_the_notebook_learns_two_own_tasks_and_asks_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    written = nbformat.read(NOTEBOOK, as_version=4)
    run = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(run, timeout=60 * MINUTES, resources=where).execute()
    first, second = (
        [float(share) for share in re.findall(r"(\d+)%", line)]
        for line in "".join(said(run)).splitlines()
        if line.startswith("after ")
    )
    assert min(*first, *second) >= 85
    asked = "".join(said(run)).split("('", 1)[1]
    assert asked.startswith("blue', 'Colour')\n('no', 'Same')\n('yes', 'Same')")
    assert (tmp_path / "runs" / "mine" / "report.html").stat().st_size > 0
    assert [bool(text) for text in said(run)] == [bool(text) for text in said(written)]


def test_the_notebook_names_no_place_of_the_machine_it_was_written_on() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(root|home|tmp|work|Users)/", text)
    for page in re.findall(r"\]\(([\w-]+\.md)\)", text):
        assert (NOTEBOOK.parent / page).exists(), page
