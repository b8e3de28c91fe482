"""Matrices as coloured cells: accuracies, location, growth, reuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cmoe.reports.charts.drawing import (
    ACCENT,
    Matrix,
    bare,
    drawn,
    ink_on,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heat_map(
    name: str,
    label: str,
    values: Matrix,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    axes: tuple[str, str] = ("", ""),
    texts: Sequence[Sequence[str]] | None = None,
    hues: Sequence[str] | None = None,
    peak: float = 100.0,
    apart: int = 0,
    low: int = 34,
) -> str:
    """Coloured cells with their values; None leaves a cell out.

    Args:
        name: Unique in the page.
        label: What is shown.
        values: By row and column; colours go from 0 to `peak`.
        rows: Their names.
        columns: Their names.
        axes: What columns and rows are.
        texts: In the cells, instead of the values.
        hues: Colours of the columns' largest values; one for all without.
        peak: The value of the full colour.
        apart: That many first rows stand apart from the others.
        low: Height of a row in pixels.
    """

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        ax = figure.subplots()
        ys = [i + (0.3 if apart and i >= apart else 0.0) for i in range(len(rows))]
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if value is None:
                    continue
                share = min(max(value / peak, 0.0), 1.0) if peak else 0.0
                colour = hues[j] if hues else ACCENT
                weight = round(0.04 + 0.96 * share, 2)
                look: dict[str, Any] = {"facecolor": colour, "alpha": weight, "linewidth": 0}
                ax.add_patch(Rectangle((j, ys[i]), 0.96, 0.94, **look))
                text = texts[i][j] if texts else f"{value:.1f}"
                ink = ink_on(colour, weight)
                ax.text(j + 0.48, ys[i] + 0.48, text, color=ink, ha="center", va="center")
        bare(ax)
        ax.set_xlim(0, len(columns))
        ax.set_ylim((ys[-1] if ys else 0) + 1, 0)
        ax.xaxis.tick_top()
        ax.xaxis.set_label_position("top")
        turn: dict[str, Any] = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"}
        ax.set_xticks([j + 0.48 for j in range(len(columns))], columns, **turn)
        ax.set_yticks([y + 0.48 for y in ys], rows)
        ax.set_xlabel(axes[0], loc="left")
        ax.set_ylabel(axes[1])

    left = 44 + 6.5 * max(map(len, rows), default=0)
    top = 44 + 4.5 * max(map(len, columns), default=0)
    width = max(left + 50 * len(columns) + 40, 300)
    return drawn(name, label, width, top + low * (len(rows) + 0.3 * bool(apart)), draw)
