"""One figure of a table: measured, beside a rival and beside what the card allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmoe.experiments.benchmarks.card import Limit
from cmoe.experiments.benchmarks.timing import milliseconds, ratio

Row = dict[str, Any]

Times = Mapping[str, list[float]]
"""Seconds of calls that were timed in turn, by name; as `timing.compare` gives them."""


class UnmeasurableError(Exception):
    """A figure that can't be had; the message says why."""


@dataclass(frozen=True)
class Figure:
    """What was measured.

    Attributes:
        measured: The figure.
        unit: Its unit.
        rival: What it is compared with.
        others: The rival's own figure.
        ratio: Of the two.
        most: Of the ratio, or of the figure where there is no ratio: what it is to be at most.
        limit: The least time that it could be, where it is a time in ms.
    """

    measured: float
    unit: str = "ms"
    rival: str | None = None
    others: float | None = None
    ratio: float | None = None
    most: float | None = None
    limit: Limit | None = None

    def row(self, name: str) -> Row:
        """As a row of a table."""
        judged = self.measured if self.ratio is None else self.ratio
        least = None if self.limit is None else 1e3 * self.limit.seconds
        return empty(name) | {
            "measured": self.measured,
            "unit": self.unit,
            "rival": self.rival,
            "rival's": self.others,
            "ratio": self.ratio,
            "at most": self.most,
            "holds": None if self.most is None else "yes" if judged <= self.most else "no",
            "limit": least,
            "limited by": self.limit and self.limit.by,
            "of limit": least and self.measured / least,
        }


def empty(name: str, why: str | None = None) -> Row:
    """The row of a figure that isn't there, and why."""
    columns = (
        *("measured", "unit", "rival", "rival's", "ratio", "at most", "holds"),
        *("limit", "limited by", "of limit"),
    )
    return {"figure": name, **dict.fromkeys(columns), "not measured": why}


def timed(
    times: Times,
    name: str,
    rival: str | None = None,
    *,
    most: float | None = None,
    limit: Limit | None = None,
) -> Figure:
    """A call's time, beside another one's of the same rounds."""
    figure = Figure(milliseconds(times[name]), most=most, limit=limit)
    if rival is None:
        return figure
    return Figure(
        figure.measured,
        rival=rival,
        others=milliseconds(times[rival]),
        ratio=ratio(times, name, rival),
        most=most,
        limit=limit,
    )
