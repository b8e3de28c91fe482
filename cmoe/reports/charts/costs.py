"""What training took: losses by step, and sums by task and part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmoe.reports.charts.drawing import (
    drawn,
    hue,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_curves(
    name: str, label: str, losses: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]
) -> str:
    """Every task's loss over the steps, as it was and smoothed.

    Args:
        name: Unique in the page.
        label: What is shown.
        losses: By task: `means`, each over `span` steps.
        tasks: Names, in the order of the stream.
    """

    def draw(figure: Figure) -> None:
        import numpy as np
        from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

        ax = figure.subplots()
        for task, curve in losses.items():
            raw = np.asarray(curve["means"], dtype=float)
            steps = curve["span"] * np.arange(len(raw)) + (curve["span"] + 1) / 2
            span = max(1, len(raw) // 20)
            # A mean over as many steps as there are at the ends.
            weight = np.convolve(np.ones_like(raw), np.ones(span), "same")
            smooth = np.convolve(raw, np.ones(span), "same") / weight
            colour = hue(tasks.index(task))
            ax.plot(steps, raw, color=colour, alpha=0.22, linewidth=0.8)
            ax.plot(steps, smooth, color=colour, linewidth=1.8, label=task)
        if all(v > 0 for curve in losses.values() for v in curve["means"]):
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        ax.grid(axis="y")
        figure.legend(loc="outside lower left", ncols=4)

    return drawn(name, label, 520, 270 + 17 * -(-len(losses) // 4), draw)


def stacked_bars(
    name: str,
    label: str,
    values: Mapping[str, Mapping[str, float]],
    parts: Iterable[str],
    unit: str,
) -> str:
    """Per task a bar, cut by part."""
    parts = list(parts)

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        tasks = list(values)
        starts = [0.0] * len(tasks)
        for number, part in enumerate(parts):
            widths = [values[t].get(part, 0.0) for t in tasks]
            ax.barh(tasks, widths, left=starts, color=hue(number), label=part, height=0.62)
            starts = [s + w for s, w in zip(starts, widths, strict=True)]
        ax.set_ylim(len(tasks) - 0.5, -0.5)
        ax.locator_params(axis="x", nbins=6)
        ax.xaxis.set_major_formatter("{x:,.0f}" if max(starts) > 5 else "{x:g}")
        ax.set_xlabel(unit)
        ax.grid(axis="x")
        figure.legend(loc="outside lower left", ncols=4)

    return drawn(name, label, 560, 76 + 26 * len(values) + 17 * -(-len(parts) // 4), draw)
