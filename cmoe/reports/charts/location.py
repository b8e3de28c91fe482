"""How tasks are told apart: scores, unlearned tasks, and what it costs by their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmoe.reports.charts.drawing import (
    ACCENT,
    FAINT,
    INK,
    MUTED,
    PANEL,
    drawn,
    hue,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def score_histogram(name: str, label: str, scores: Mapping[str, Any], task: int) -> str:
    """Locator scores of a task's samples: against the task, and against the best other one.

    Args:
        name: Unique in the page.
        label: What is shown.
        scores: Counts of `own` and `other` scores by bin, the bins' `edges`, and the `limit` beyond
            which a sample is unknown, where it was kept.
        task: Index of the task.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        look: dict[str, Any] = {"edges": scores["edges"], "fill": True}
        if any(scores["other"]):
            ax.stairs(scores["other"], color=MUTED, alpha=0.45, **look)
        ax.stairs(scores["own"], color=hue(task), alpha=0.8, **look)
        if "limit" in scores:  # reports of before it was kept have none
            ax.axvline(scores["limit"], color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
        ax.set_xlabel("score (smaller is likelier)")
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.locator_params(axis="x", nbins=6)

    return drawn(name, label, 250, 140, draw)


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
            look: dict[str, Any] = {"s": 34, "edgecolor": PANEL, "zorder": 3, "clip_on": False}
            ax.scatter(curve["false_alarms"], curve["caught"], color=colour, **look)
        ax.set_xlim(0, 100)
        ax.set_ylim(0, 100)
        ax.set_aspect("equal")
        ax.set_xlabel("learned samples called unknown, percent")
        ax.set_ylabel("unlearned samples called unknown, percent")
        ax.grid()
        figure.legend(loc="outside lower left", ncols=4)

    return drawn(name, label, 440, 400 + 17 * -(-len(curves) // 4), draw)


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
