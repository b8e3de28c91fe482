"""A report's page, as its tests read it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
HOSTILE = '<script>alert(1)</script> & "$\\frac{"$'
"""A name that a page has to escape, and a chart must not typeset."""

HEAVY = {"matplotlib", "jinja2", "ray", "torch", "pyarrow", "transformers"}
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page's elements, tables, tiles and figures, and whatever isn't closed in its turn.

    Attributes:
        tiles: The value of each of its tiles, by title.
        notes: What stands in a tile behind its value.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, list[str]] = {}
        tiles = re.findall(r"<dt>(.*?)</dt>\s*<dd><b>(.*?)</b>(.*?)</dd>", self.source, re.DOTALL)
        self.tiles = {title: value for title, value, _ in tiles}
        self.notes = {title: note for title, _, note in tiles}
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self._figure: str | None = None
        self.feed(self.source)
        self.close()
        assert not self._open, "closed in their turn"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "svg":
            self._figure = dict(attrs)["aria-label"] or ""
            assert self._figure not in self.figures, "a figure's name says which one it is"
            self.figures[self._figure] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._figure = None if tag == "svg" else self._figure

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._figure is not None and data.strip():
            self.figures[self._figure].append(data.strip())
        if {"th", "td"} & set(self._open):
            self.rows[-1][-1] += data

    def row(self, *start: str) -> list[str]:
        """The only row that begins with these cells."""
        (row,) = [r for r in self.rows if tuple(r[: len(start)]) == start]
        return row

    def section(self, name: str) -> str:
        """The source of a part, from its heading to the next one."""
        return re.split(r"<h[23]\b", self.source.split(f'id="{name}"')[1])[0]

    def values(self, *names: str) -> list[str]:
        """All values of these attributes."""
        return [v for _, attrs in self.elements for n in names if (v := attrs.get(n))]

    def loads_nothing(self) -> None:
        """It is one file: pictures are in it, and nothing is asked of anyone."""
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in self.elements}
        assert all(v.startswith("data:image/") for v in self.values("src"))
        assert all(v.startswith("#") for v in self.values("href", "xlink:href"))
        assert not re.search(r"https?:|@import|url\((?!#)", self.source)

    def has_its_own_ids(self) -> None:
        """Every id is there once, and every link within the page leads to one."""
        ids = self.values("id")
        assert len(ids) == len(set(ids))
        used = {v.removeprefix("#") for v in self.values("href", "xlink:href")}
        used |= set(re.findall(r"url\(#([^)]*)\)", self.source))
        assert used <= set(ids)


def stays_the_same(folder: Path, write: Callable[[], None], drawn: dict[str, str]) -> None:
    """A folder that is written again is the same to the byte, and nothing else is in it.

    Args:
        folder: What was written before.
        write: Writes it again.
        drawn: Charts that are kept: it is cleared, so that all of them are drawn again.
    """
    before = _contents(folder)
    drawn.clear()
    write()
    changed = {str(name) for name, _ in before.items() ^ _contents(folder).items()}
    assert not changed, changed


def _contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def is_light(module: str) -> None:
    """To import it loads nothing that takes its time."""
    code = f"import sys, {module}; print(*{HEAVY} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip(), done.stdout
