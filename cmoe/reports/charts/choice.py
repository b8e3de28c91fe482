"""What sets of layers came to: the random ones and those that something chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmoe.reports.charts.drawing import ACCENT, FAINT, GOOD, INK, MUTED, drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def losses_of_sets(
    name: str, label: str, drawn_losses: Sequence[float], chosen: Mapping[str, Mapping[str, Any]]
) -> str:
    """The random sets' losses on one line, and on lines below what was chosen.

    Args:
        name: Unique in the page.
        label: What is shown.
        drawn_losses: Of the random sets.
        chosen: By name `loss`.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        names = ["random", *chosen]
        ordered = sorted(drawn_losses)
        middle = ordered[len(ordered) // 2]
        ax.axvline(middle, color=FAINT, linewidth=1.2, linestyle=(0, (4, 2)))
        ax.scatter(ordered, [0] * len(ordered), s=26, color=MUTED, alpha=0.5, linewidths=0)
        for place, one in enumerate(chosen.values(), 1):
            colour = GOOD if one["loss"] < middle else ACCENT
            ax.plot([middle, one["loss"]], [place, place], color=colour, linewidth=1.4)
            ax.scatter([one["loss"]], [place], s=34, color=colour, zorder=3)
        ax.set_yticks(range(len(names)), names, color=INK)
        ax.set_ylim(len(names) - 0.5, -0.6)
        ax.locator_params(axis="x", nbins=6)
        ax.set_xlabel("held-out loss per answer token, nats")
        ax.grid(axis="x")

    return drawn(name, label, 540, 90 + 24 * (1 + len(chosen)), draw)


def layers_of_sets(name: str, label: str, chosen: Mapping[str, Sequence[int]], layers: int) -> str:
    """Which layers each choice took.

    Args:
        name: Unique in the page.
        label: What is shown.
        chosen: Layers by name.
        layers: Of the base.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for place, taken in enumerate(chosen.values()):
            ax.scatter(range(layers), [place] * layers, s=14, color=FAINT, linewidths=0)
            ax.scatter(taken, [place] * len(taken), s=44, color=ACCENT, marker="s", linewidths=0)
        ax.set_yticks(range(len(chosen)), list(chosen), color=INK)
        ax.set_ylim(len(chosen) - 0.5, -0.6)
        ax.set_xlim(-0.8, layers - 0.2)
        ax.locator_params(axis="x", nbins=10, integer=True)
        ax.set_xlabel("layer")

    return drawn(name, label, 540, 80 + 24 * len(chosen), draw)
