"""How charts are drawn: each is an SVG of its own, text stays text, and nothing is loaded.

Every chart has a name that is unique in its page (ids inside the SVG are made of it) and a label,
which says what it shows to those who can't see it.

Charts follow the page, in dark mode, too: colours of `FOLLOWING` become the page's variables, and a
colour that is to be paler is more transparent, so that it is paler before any page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT, GRID = "#1f2937", "#6b7280", "#c3c9d2", "#e8ebef"
GOOD, BAD, CUT = "#2a9d6f", "#d1495b", "#e9a23b"
ACCENT, PANEL = "#2f6fb3", "#ffffff"
FOLLOWING = {
    INK: "ink",
    MUTED: "soft",
    FAINT: "faint",
    GRID: "line",
    GOOD: "good",
    BAD: "bad",
    ACCENT: "accent",
    PANEL: "panel",
}
"""Variables of the page that stand for the colours of a chart."""

HUES = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#b6578f", "#3a9e98"),
    *("#e15759", "#8a63b5", "#9c755f", "#b8961e", "#7f8792"),
)
_BLACK, _WHITE = "#000000", "#fefefe"
_INKS = {
    # On a light page and on a dark one.
    ("black", "black"): _BLACK,
    ("white", "white"): _WHITE,
    ("black", "white"): "#010101",
    ("white", "black"): "#020202",
}
_CSS = {colour: f"var(--{name})" for colour, name in FOLLOWING.items()} | {
    _INKS["black", "white"]: "var(--black-white)",
    _INKS["white", "black"]: "var(--white-black)",
}
_PAGES = ("#ffffff", "#1b212a")
"""What is behind a chart on a light page and on a dark one: `--panel` of the template."""

_HUES_IN_DARK = {ACCENT: "#7db3ec"}
"""Colours that the dark page has others for, as the template says."""

PIXEL = 1 / 96
"""Inches of a CSS pixel: sizes are given in pixels, as the page shows them at most."""

LOOK: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.5,
    "axes.labelsize": 8,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 1.2,
    "legend.columnspacing": 1.2,
    "savefig.transparent": True,
}
"""Matplotlib's settings: small type, little ink; no setting is changed for anyone else."""

_GROUP_ID = re.compile(r'<g id="[^"]*"')
_HEAD = re.compile(r'<svg [^>]*viewBox="([^"]*)"[^>]*>')
_COLOUR = re.compile(r"\b(fill|stroke): (#[0-9a-f]{6})\b")
_STYLE = re.compile(r"<style.*?</style>", re.DOTALL)

Matrix = Sequence[Sequence[float | None]]


def hue(index: int) -> str:
    """A task's colour, the same in every figure."""
    return HUES[index % len(HUES)]


def ink_on(colour: str, weight: float = 1.0) -> str:
    """The colour of text that is best read on a colour so opaque, in light and in dark mode."""
    best = []
    for page, shown in zip(_PAGES, (colour, _HUES_IN_DARK.get(colour, colour)), strict=True):
        parts = zip(_rgb(shown), _rgb(page), strict=True)
        light = _luminance(weight * s + (1 - weight) * p for s, p in parts)
        # WCAG's contrast: (lighter + 0.05) / (darker + 0.05).
        best.append("black" if (light + 0.05) ** 2 > 0.05 * 1.05 else "white")
    return _INKS[best[0], best[1]]


def _rgb(colour: str) -> list[float]:
    return [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]


def _luminance(rgb: Iterable[float]) -> float:
    """Relative luminance (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def drawn(
    name: str, label: str, width: float, height: float, draw: Callable[[Figure], None]
) -> str:
    """An SVG of so many pixels at most; narrower where its page is."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = StringIO()
    with matplotlib.rc_context({**LOOK, "svg.hashsalt": name}):
        figure = Figure(figsize=(width * PIXEL, height * PIXEL), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = _GROUP_ID.sub("<g", _STYLE.sub("", svg[svg.index("<svg") :])).strip()
    svg = _COLOUR.sub(lambda found: f"{found[1]}: {_CSS.get(found[2], found[2])}", svg)
    head = f'<svg role="img" aria-label="{escape(label)}" style="--width:{width:.0f}px"'
    return _HEAD.sub(lambda found: f'{head} viewBox="{found[1]}">', svg, count=1)


def over_stages(ax: Axes, count: int) -> None:
    """The axes of accuracies over so many stages, alike in every figure that has none over 100."""
    ax.set_ylim(0, max(100.0, ax.dataLim.y1))
    ax.set_xlim(0.7, count + 0.3)
    ax.set_xticks(range(1, count + 1))
    ax.set_yticks((0, 50, 100))
    ax.grid(axis="y")
    ax.set_xlabel("tasks learned")


def bare(ax: Axes) -> None:
    """Without lines around the axes, and without ticks."""
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
