"""The report's figures, each an SVG of its own: text stays text, nothing is loaded from elsewhere.

Every function takes a name that is unique in its page (ids inside the SVG are made of it) and what
the figure shows, for those who can't see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT, GRID = "#1f2937", "#6b7280", "#c3c9d2", "#e8ebef"
GOOD, BAD, CUT = "#2a9d6f", "#d1495b", "#e9a23b"
ACCENT = "#2f6fb3"
HUES = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#b6578f", "#3a9e98"),
    *("#e15759", "#8a63b5", "#9c755f", "#b8961e", "#7f8792"),
)
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
_STYLE = re.compile(r"<style.*?</style>", re.DOTALL)

Matrix = Sequence[Sequence[float | None]]


def hue(index: int) -> str:
    """A task's colour, the same in every figure."""
    return HUES[index % len(HUES)]


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
        from matplotlib.colors import to_rgb
        from matplotlib.patches import Rectangle

        ax = figure.subplots()
        ys = [i + (0.3 if apart and i >= apart else 0.0) for i in range(len(rows))]
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if value is None:
                    continue
                share = min(max(value / peak, 0.0), 1.0) if peak else 0.0
                full = to_rgb(hues[j] if hues else ACCENT)
                weight = 0.04 + 0.96 * share
                colour = tuple(1 - weight * (1 - c) for c in full)
                ax.add_patch(Rectangle((j, ys[i]), 0.96, 0.94, facecolor=colour, linewidth=0))
                dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 0.62
                text = texts[i][j] if texts else f"{value:.1f}"
                ink = "white" if dark else INK
                ax.text(j + 0.48, ys[i] + 0.48, text, color=ink, ha="center", va="center")
        _bare(ax)
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
            ax.hlines(ys, zero_shot, oracle, color="#bfe3d2", **thick)
        ax.hlines(ys, located, oracle, color="#f0b4bb", **thick)
        look: dict[str, Any] = {"facecolor": "white", "edgecolor": MUTED, "s": 44, "linewidth": 1.5}
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
                color=hue(task) if mine else GRID,
                linewidth=2.2 if mine else 1,
                marker="o" if mine else None,
                markersize=4,
                clip_on=not mine,
            )
        if zero_shot is not None:
            ax.axhline(zero_shot, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        over_stages(ax, len(matrix))

    return drawn(name, label, 250, 150, draw)


def over_stages(ax: Axes, count: int) -> None:
    """The axes of accuracies over so many stages, alike in every figure."""
    ax.set_ylim(0, 100)
    ax.set_xlim(0.7, count + 0.3)
    ax.set_xticks(range(1, count + 1))
    ax.set_yticks((0, 50, 100))
    ax.grid(axis="y")
    ax.set_xlabel("tasks learned")


def probe_bars(
    name: str,
    label: str,
    scores: Sequence[float],
    threshold: float | None,
    grown: Sequence[int],
    cut: Sequence[int],
    score: str,
    size: tuple[float, float] = (250, 170),
) -> str:
    """A task's deciding score by layer: which layers passed, and which the budget cut.

    With many layers it is wider than its size.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        layers = range(len(scores))
        colours = [ACCENT if n in grown else CUT if n in cut else FAINT for n in layers]
        ax.bar(layers, scores, color=colours, width=0.72)
        if threshold is not None:
            ax.axhline(threshold, color=BAD, linewidth=1.3, linestyle=(0, (4, 2)))
        ax.axhline(0, color=MUTED, linewidth=0.8)
        ax.set_xticks([n for n in layers if len(scores) <= 12 or n % 4 == 0])
        ax.set_xlabel("layer")
        ax.set_ylabel(score.replace("_", " "))
        ax.grid(axis="y")
        ax.locator_params(axis="y", nbins=5)

    return drawn(name, label, max(size[0], 60 + 11 * len(scores)), size[1], draw)


def routing_map(
    name: str,
    label: str,
    usage: Sequence[Sequence[Sequence[float]]],
    owners: Sequence[Sequence[int]],
    tasks: Sequence[str],
) -> str:
    """Bars of shares: a row per layer, a column per task, a segment per expert.

    Args:
        name: Unique in the page.
        label: What is shown.
        usage: Shares [task][layer][expert] that sum to 1 over a layer's experts.
        owners: By layer, the task that added each expert.
        tasks: Names, in the order of the stream.
    """

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Patch, Rectangle

        ax = figure.subplots()
        for j, layers in enumerate(usage):
            for i, shares in enumerate(layers):
                start = 0.0
                for share, owner in zip(shares, owners[i], strict=False):
                    width = 0.94 * share
                    where = (j + start, i + 0.12)
                    box = Rectangle(where, width, 0.76, facecolor=hue(owner), edgecolor="white")
                    ax.add_patch(box)
                    if width > 0.16:
                        middle = j + start + width / 2
                        style: dict[str, Any] = {
                            "ha": "center",
                            "va": "center_baseline",
                            "color": "white",
                        }
                        ax.text(middle, i + 0.5, str(owner + 1), fontsize=7, **style)
                    start += width
        _bare(ax)
        ax.set_xlim(0, len(usage))
        ax.set_ylim(len(owners), 0)
        ax.xaxis.tick_top()
        names = [f"{j + 1} {task}" for j, task in enumerate(tasks)]
        turn: dict[str, Any] = {"rotation": 30, "ha": "left", "rotation_mode": "anchor"}
        ax.set_xticks([j + 0.3 for j in range(len(usage))], names[: len(usage)], **turn)
        ax.set_yticks([i + 0.5 for i in range(len(owners))], map(str, range(len(owners))))
        ax.set_ylabel("layer")
        adders = sorted({owner for layer in owners for owner in layer})
        patches = [Patch(facecolor=hue(j), label=f"added by {names[j]}") for j in adders]
        figure.legend(handles=patches, loc="outside lower left", ncols=4)

    height = 110 + 27 * len(owners) + 18 * -(-len(tasks) // 4)
    return drawn(name, label, max(560, 60 + 96 * len(usage)), height, draw)


def score_histogram(name: str, label: str, scores: Mapping[str, Any], task: int) -> str:
    """Locator scores of a task's samples: against the task, and against the best other one.

    Args:
        name: Unique in the page.
        label: What is shown.
        scores: Counts of `own` and `other` scores by bin, and the bins' `edges`.
        task: Index of the task.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        look: dict[str, Any] = {"edges": scores["edges"], "fill": True}
        if any(scores["other"]):
            ax.stairs(scores["other"], color="#9aa3af", alpha=0.55, **look)
        ax.stairs(scores["own"], color=hue(task), alpha=0.8, **look)
        ax.set_xlabel("score (smaller is likelier)")
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.locator_params(axis="x", nbins=6)

    return drawn(name, label, 250, 140, draw)


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


def _bare(ax: Axes) -> None:
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


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
    head = f'<svg role="img" aria-label="{escape(label)}" style="max-width:{width:.0f}px"'
    return _HEAD.sub(lambda found: f'{head} viewBox="{found[1]}">', svg, count=1)
