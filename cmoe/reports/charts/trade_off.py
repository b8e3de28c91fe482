"""What accuracy costs in parameters, a named dot for each method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from cmoe.reports.charts.drawing import ACCENT, FAINT, MUTED, PANEL, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in pixels."""


@dataclass(frozen=True)
class Dot:
    """A method in the figure of what accuracy costs.

    Attributes:
        name: Of the method.
        parameters: Scalars that it adds, a mean over seeds.
        last: Percent, a mean over seeds.
        deviation: Of `last` over seeds, in points; None with one seed.
        apart: Whether it knows what no rival does.
    """

    name: str
    parameters: float
    last: float
    deviation: float | None
    apart: bool


def trade_off(
    name: str,
    label: str,
    dots: Sequence[Dot],
    ceiling: float | None = None,
    size: tuple[float, float] = (540, 270),
) -> str:
    """Last by added parameters, a dot per method; who knows more is hollow.

    Args:
        name: Unique in the page.
        label: What is shown.
        dots: The methods.
        ceiling: Last of the method that learned all tasks at once, if it's there.
        size: Of the figure in pixels.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for dot in dots:
            colour = MUTED if dot.apart else ACCENT
            look: dict[str, Any] = {"capsize": 2.5, "elinewidth": 1, "markersize": 6.5}
            face = PANEL if dot.apart else colour
            ax.errorbar(
                dot.parameters, dot.last, dot.deviation, fmt="o", color=colour, mfc=face, **look
            )
        if ceiling is not None:
            ax.axhline(ceiling, color=MUTED, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
        ax.margins(0.1, 0.08)
        ax.locator_params(nbins=6)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set_xlabel("added parameters")
        ax.set_ylabel("Last, percent")
        ax.grid()
        _name(ax, dots, size[0] - 100, size[1] - 70)

    return drawn(name, label, *size, draw)


def _name(ax: Axes, dots: Sequence[Dot], width: float, height: float) -> None:
    """Write each dot's name beside it, where neither a dot nor another name is.

    Args:
        ax: With the dots.
        dots: The methods.
        width: Of the axes in pixels, roughly: they are laid out later.
        height: The same.
    """
    (first, end), (low, high) = ax.get_xlim(), ax.get_ylim()
    places = [
        (width * (d.parameters - first) / (end - first), height * (d.last - low) / (high - low))
        for d in dots
    ]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    shifts = list(product(sorted(range(-66, 67, 11), key=abs), (1, -1)))
    for dot, (x, y) in zip(dots, places, strict=True):
        boxes = []
        for up, side in shifts:
            left, right = sorted((x + side * 7, x + side * (9 + 6 * len(dot.name))))
            boxes.append((left, y + up - 5, right, y + up + 5))
        free = (n for n, box in enumerate(boxes) if not _meets(box, taken))
        chosen = next(free, 0)
        taken.append(boxes[chosen])
        up, side = shifts[chosen]
        ax.annotate(
            dot.name,
            (dot.parameters, dot.last),
            xytext=(side * 6, 0.75 * up),  # points: three quarters of a pixel
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=8,
            bbox={"facecolor": PANEL, "alpha": 0.8, "linewidth": 0, "pad": 0.5},
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8} if up else None,
        )


def _meets(box: _Box, others: Iterable[_Box]) -> bool:
    """Whether two boxes have something in common."""
    left, bottom, right, top = box
    return any(o[0] < right and left < o[2] and o[1] < top and bottom < o[3] for o in others)
