"""What a sweep tried for a task: what each candidate adds, and how well it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmoe.reports.charts.drawing import ACCENT, BAD, FAINT, GOOD, MUTED, PANEL, drawn
from cmoe.reports.sweep_numbers import Tried

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def trade_off(name: str, label: str, tried: Sequence[Tried], limit: int | None) -> str:
    """Accuracy by added parameters, with the front; a limit far to the right is only named.

    Args:
        name: Unique in the page.
        label: What is shown.
        tried: Candidates with a trial.
        limit: Parameters that the task may add.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        sizes = [t.parameters for t in tried]
        span = max(sizes) - min(sizes) or max(sizes)
        right = max(sizes) + 0.15 * span
        if limit is not None and limit < max(sizes) + span:
            right = max(right, limit + 0.05 * span)
        front = sorted((t.parameters, t.accuracy) for t in tried if t.state in ("wins", "front"))
        xs, ys = zip(*front, strict=True)
        ax.step([*xs, right], [*ys, ys[-1]], where="post", color=ACCENT, linewidth=1.6)
        for t in tried:
            if t.accuracy is None:
                continue
            colour = {"wins": GOOD, "front": ACCENT}.get(t.state, MUTED)
            bar: dict[str, Any] = {"elinewidth": 1, "capsize": 2.5, "alpha": 0.6, "zorder": 2}
            ax.errorbar(t.parameters, t.accuracy, t.error, color=colour, **bar)
            _dot(ax, t.parameters, t.accuracy, t)
        low, high = ax.get_ylim()
        for t in tried:
            if t.accuracy is None:
                _dot(ax, t.parameters, low, t)
        if limit is not None:
            near = limit <= right
            where = limit if near else right
            ax.axvline(where, color=BAD, linewidth=1.3, linestyle=(0, (4, 2)))
            text = f"budget {limit:,} {'' if near else '→ '}"
            ax.text(where, high, text, color=BAD, fontsize=7.5, ha="right", va="bottom")
        ax.set_xlim(min(sizes) - 0.12 * span, right)
        ax.set_ylim(low, high)
        ax.locator_params(nbins=6)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set_xlabel("added parameters")
        ax.set_ylabel("selection accuracy, percent")
        ax.grid()

    return drawn(name, label, 540, 320, draw)


def parallel(
    name: str, label: str, tried: Sequence[Tried], settings: Mapping[str, Sequence[Any]]
) -> str:
    """A line for each point over what was searched, what it adds and how well it answers.

    Args:
        name: Unique in the page.
        label: What is shown.
        tried: Candidates with a trial.
        settings: Those with more than one value, and their values in order.
    """
    accuracies = [t.accuracy for t in tried if t.accuracy is not None]
    sizes = [t.parameters for t in tried]

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for column, values in enumerate(settings.values()):
            for n, value in enumerate(values):
                _mark(ax, column, n / (len(values) - 1), str(value))
        last = len(settings)
        for n in {min(sizes), max(sizes)}:
            _mark(ax, last, _place(n, sizes), f"{n:,}")
        for a in {min(accuracies), max(accuracies)}:
            _mark(ax, last + 1, _place(a, accuracies), f"{a:.1f}")
        for t in sorted(tried, key=lambda t: (t.state == "wins", t.accuracy or -1.0)):
            came = [_place(t.parameters, sizes)]
            look: dict[str, Any] = {"color": BAD, "linewidth": 1, "linestyle": (0, (2, 2))}
            if t.accuracy is not None:
                came.append(_place(t.accuracy, accuracies))
                look = {"color": ACCENT, "alpha": round(0.25 + 0.75 * came[-1], 2)}
                look["linewidth"] = 3.4 if t.state == "wins" else 1.6
            for point in t.points:
                ys = [values.index(point[k]) / (len(values) - 1) for k, values in settings.items()]
                ax.plot(range(len(ys) + len(came)), ys + came, **look)
            _dot(ax, last + len(came) - 1, came[-1], t)
        names = [*(key.replace("_", " ") for key in settings), "parameters", "accuracy"]
        ax.set_xticks(range(len(names)), names)
        ax.set_yticks([])
        ax.vlines(range(len(names)), 0, 1, color=FAINT, linewidth=1, zorder=0)
        ax.set_xlim(-0.4, len(names) - 0.8)
        ax.set_ylim(-0.06, 1.06)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)

    return drawn(name, label, 540, 320, draw)


def _place(value: float, among: Sequence[float]) -> float:
    """From 0 for the least to 1 for the most; in the middle where they are one."""
    low, high = min(among), max(among)
    return (value - low) / (high - low) if high > low else 0.5


def _dot(ax: Axes, x: float, y: float, tried: Tried) -> None:
    """A candidate's mark and number."""
    shapes = {"wins": ("*", 150, GOOD), "front": ("o", 40, ACCENT), "stopped": ("X", 34, BAD)}
    marker, size, colour = shapes.get(tried.state, ("o", 40, MUTED))
    look: dict[str, Any] = {"edgecolor": PANEL, "linewidth": 0.8, "zorder": 3, "clip_on": False}
    ax.scatter(x, y, s=size, color=colour, marker=marker, **look)
    beside: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "color": MUTED}
    ax.annotate(str(tried.number), (x, y), xytext=(5, 4), **beside)


def _mark(ax: Axes, column: int, y: float, text: str) -> None:
    """A value on an axis of the parallel ones."""
    ax.plot([column - 0.02, column + 0.02], [y, y], color=FAINT, linewidth=1)
    look: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 7.5, "color": MUTED}
    behind = {"facecolor": PANEL, "alpha": 0.8, "linewidth": 0, "pad": 1}  # lines pass there
    ax.text(column - 0.05, y, text, bbox=behind, zorder=4, **look)
