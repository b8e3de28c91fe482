"""Where the network grows, and who uses what was added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmoe.reports.charts.drawing import (
    ACCENT,
    BAD,
    CUT,
    FAINT,
    GOOD,
    INK,
    MUTED,
    PANEL,
    bare,
    drawn,
    hue,
    ink_on,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def sensitivity(
    name: str,
    label: str,
    probes: Mapping[str, Any],
    searched: Sequence[float],
    chosen: Mapping[str, Any],
) -> str:
    """How many layers grow by the threshold, for each score: nothing is trained to know it.

    Args:
        name: Unique in the page.
        label: What is shown.
        probes: How many `layers` grow by score at each of `alphas`, and which `passed` for the
            winner.
        searched: Thresholds of the sweep.
        chosen: The winner's point.
    """
    alphas, count = probes["alphas"], len(probes["scores"])

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.vlines(searched, 0, count, color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
        # The first two often agree: the later line is the thinner one, and leaves the other to see.
        for number, (score, grown) in enumerate(probes["layers"].items()):
            width = 5.0 - 1.7 * number
            text = score.replace("_", " ")
            ax.step(alphas, grown, where="post", color=hue(number), linewidth=width, label=text)
            if chosen["score"] == score and chosen["alpha"] is not None:
                look: dict[str, Any] = {"color": GOOD, "edgecolor": INK, "zorder": 3}
                layers = len(probes["passed"])
                ax.scatter(chosen["alpha"], layers, s=120, marker="*", clip_on=False, **look)
        ax.set_xlim(alphas[0], alphas[-1])
        ax.set_ylim(0, count * 1.04)
        ax.locator_params(axis="y", integer=True)
        ax.set_xlabel("alpha")
        ax.set_ylabel("layers that grow")
        ax.grid(axis="y")
        figure.legend(loc="outside lower left", ncols=3)

    return drawn(name, label, 540, 250, draw)


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
                    box = Rectangle(where, width, 0.76, facecolor=hue(owner), edgecolor=PANEL)
                    ax.add_patch(box)
                    if width > 0.16:
                        middle = j + start + width / 2
                        style: dict[str, Any] = {
                            "ha": "center",
                            "va": "center_baseline",
                            "color": ink_on(hue(owner)),
                        }
                        ax.text(middle, i + 0.5, str(owner + 1), fontsize=7, **style)
                    start += width
        bare(ax)
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
