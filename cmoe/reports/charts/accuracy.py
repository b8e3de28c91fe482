"""Accuracy by task and stage."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cmoe.reports.charts.drawing import (
    ACCENT,
    BAD,
    FAINT,
    GOOD,
    INK,
    MUTED,
    PANEL,
    Matrix,
    drawn,
    hue,
    over_stages,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def decomposition(
    name: str,
    label: str,
    tasks: Sequence[str],
    zero_shot: Sequence[float] | None,
    oracle: Sequence[float],
    located: Sequence[float],
) -> str:
    """Per task a line of percent: from the base to its own experts, and on to what is located."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ys = range(len(tasks))
        thick: dict[str, Any] = {"linewidth": 5, "zorder": 1}
        if zero_shot is not None:
            ax.hlines(ys, zero_shot, oracle, color=GOOD, alpha=0.3, **thick)
        ax.hlines(ys, located, oracle, color=BAD, alpha=0.35, **thick)
        look: dict[str, Any] = {"facecolor": PANEL, "edgecolor": MUTED, "s": 44, "linewidth": 1.5}
        dots: list[tuple[str, Sequence[float], dict[str, Any]]] = [
            ("the task's own experts (oracle)", oracle, {**look, "edgecolor": GOOD, "marker": "D"}),
            ("located", located, {"color": ACCENT, "s": 13}),
        ]
        if zero_shot is not None:
            dots.insert(0, ("base alone (zero-shot)", zero_shot, look))
        for text, xs, style in dots:
            ax.scatter(xs, ys, label=text, zorder=2, **style)
        ax.set_xlim(-2, 102)
        ax.set_ylim(len(tasks) - 0.5, -0.5)
        ax.set_yticks(ys, tasks)
        ax.set_xlabel("accuracy, percent")
        ax.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=3)

    return drawn(name, label, 540, 92 + 32 * len(tasks), draw)


def accuracy_curve(
    name: str, label: str, matrix: Matrix, task: int, zero_shot: float | None
) -> str:
    """A task's accuracy over the stages, before the others' in grey."""

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for other in (*(j for j in range(len(matrix)) if j != task), task):
            xs = range(other, len(matrix))
            ys = [matrix[i][other] for i in xs]
            mine = other == task
            ax.plot(
                [x + 1 for x in xs],
                [float("nan") if y is None else y for y in ys],
                color=hue(task) if mine else FAINT,
                linewidth=2.2 if mine else 1,
                marker="o" if mine else None,
                markersize=4,
                clip_on=not mine,
            )
        if zero_shot is not None:
            ax.axhline(zero_shot, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        over_stages(ax, len(matrix))

    return drawn(name, label, 250, 150, draw)


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
