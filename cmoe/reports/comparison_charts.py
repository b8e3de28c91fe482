"""The figures of a comparison; by the manner of the run report's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cmoe.reports.charts import ACCENT, FAINT, INK, MUTED, Matrix, drawn, hue, over_stages

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
        bound: Whether it knows what no rival does.
    """

    name: str
    parameters: float
    last: float
    deviation: float | None
    bound: bool


def trade_off(
    name: str,
    label: str,
    dots: Sequence[Dot],
    ceiling: float | None = None,
    size: tuple[float, float] = (540, 270),
) -> str:
    """Last by added parameters, a dot per method; bounds are hollow.

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
            colour = MUTED if dot.bound else ACCENT
            look: dict[str, Any] = {"capsize": 2.5, "elinewidth": 1, "markersize": 6.5}
            face = "white" if dot.bound else colour
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
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5},
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8} if up else None,
        )


def _meets(box: _Box, others: Iterable[_Box]) -> bool:
    """Whether two boxes have something in common."""
    left, bottom, right, top = box
    return any(o[0] < right and left < o[2] and o[1] < top and bottom < o[3] for o in others)


def forgetting_curves(name: str, label: str, matrix: Matrix) -> str:
    """Every task's accuracy over the stages in its own colour, and the mean of those learned.

    Args:
        name: Unique in the page.
        label: What is shown.
        matrix: Percent by stage and task; None before a task is learned.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        stages = range(1, len(matrix) + 1)
        small: dict[str, Any] = {"linewidth": 1, "marker": "o", "markersize": 2.2}
        for task, column in enumerate(zip(*matrix, strict=True)):
            ys = [float("nan") if y is None else y for y in column]
            ax.plot(stages, ys, color=hue(task), clip_on=False, **small)
        known = [[y for y in row if y is not None] for row in matrix]
        means = [fmean(row) if row else float("nan") for row in known]
        ax.plot(stages, means, color=INK, linewidth=2.6, marker="o", markersize=4, clip_on=False)
        over_stages(ax, len(matrix))

    return drawn(name, label, 270, 180, draw)


def dots_by_row(
    name: str,
    label: str,
    labels: Sequence[str],
    rows: Matrix,
    means: Sequence[float],
) -> str:
    """Percent: a row for each variant, with a dot per task and a line at the mean.

    Args:
        name: Unique in the page.
        label: What is shown.
        labels: Of the variants.
        rows: Accuracies by variant and task; None leaves a dot out.
        means: Of the rows.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ys = range(len(rows))
        for task, column in enumerate(zip(*rows, strict=True)):
            xs = [float("nan") if x is None else x for x in column]
            ax.scatter(xs, ys, color=hue(task), s=26, alpha=0.85, linewidth=0)
        ax.vlines(means, [y - 0.32 for y in ys], [y + 0.32 for y in ys], color=INK, linewidth=2)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_yticks(ys, labels)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("Last by task, percent")
        ax.grid()

    return drawn(name, label, 540, 60 + 34 * len(rows), draw)


def steps(name: str, label: str, values: Mapping[str, float], axes: tuple[str, str]) -> str:
    """A line through what was measured; the steps are evenly apart, whatever they stand for.

    Args:
        name: Unique in the page.
        label: What is shown.
        values: By the step's name.
        axes: What steps and values are.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        xs = range(len(values))
        ax.plot(xs, list(values.values()), color=ACCENT, linewidth=2, marker="o", markersize=5)
        ax.set_xticks(xs, list(values))
        ax.margins(0.08, 0.2)
        ax.locator_params(axis="y", nbins=5)
        ax.set_xlabel(axes[0])
        ax.set_ylabel(axes[1])
        ax.grid(axis="y")

    return drawn(name, label, 320, 200, draw)


def roc(name: str, label: str, curves: Sequence[Mapping[str, Any]], hues: Sequence[str]) -> str:
    """Curves of telling samples of an unlearned task from learned ones, with the chosen point.

    Args:
        name: Unique in the page.
        label: What is shown.
        curves: `held_out`, `fpr` and `tpr` as shares, `false_alarms` and `caught` as percent.
        hues: Their colours.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.plot((0, 100), (0, 100), color=FAINT, linewidth=1, linestyle=(0, (4, 2)))
        for curve, colour in zip(curves, hues, strict=True):
            xs, ys = ([100 * share for share in curve[key]] for key in ("fpr", "tpr"))
            ax.plot(xs, ys, color=colour, linewidth=1.8, label=curve["held_out"], clip_on=False)
            look: dict[str, Any] = {"s": 34, "edgecolor": "white", "zorder": 3, "clip_on": False}
            ax.scatter(curve["false_alarms"], curve["caught"], color=colour, **look)
        ax.set_xlim(0, 100)
        ax.set_ylim(0, 100)
        ax.set_aspect("equal")
        ax.set_xlabel("learned samples called unknown, percent")
        ax.set_ylabel("unlearned samples called unknown, percent")
        ax.grid()
        figure.legend(loc="outside lower left", ncols=4)

    return drawn(name, label, 440, 400 + 17 * -(-len(curves) // 4), draw)
