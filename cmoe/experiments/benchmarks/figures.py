"""One figure of a table: measured, beside a rival and beside what the card allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cmoe.experiments.benchmarks.card import Limit
from cmoe.experiments.benchmarks.timing import compare, milliseconds, ratio

Row = dict[str, Any]

WHY_LENGTH = 160  # of an error's first line


class UnmeasurableError(Exception):
    """A figure that can't be had; the message says why."""


@dataclass(frozen=True)
class Missing:
    """A figure that wasn't measured, and why."""

    why: str

    def row(self, name: str) -> Row:
        """As a row of a table."""
        return empty(name, self.why)


@dataclass(frozen=True)
class Times:
    """Calls that were timed in turn.

    Attributes:
        seconds: Of each call that works, as `timing.compare` gives them.
        failed: Why each of the others doesn't.
    """

    seconds: Mapping[str, list[float]]
    failed: Mapping[str, str]


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
        lacks: Why there is no rival.
    """

    measured: float
    unit: str = "ms"
    rival: str | None = None
    others: float | None = None
    ratio: float | None = None
    most: float | None = None
    limit: Limit | None = None
    lacks: str | None = None

    def row(self, name: str) -> Row:
        """As a row of a table."""
        judged = self.measured if self.ratio is None else self.ratio
        least = None if self.limit is None else 1e3 * self.limit.seconds
        return empty(name, self.lacks) | {
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


def empty(name: str, why: str | None) -> Row:
    """A row without figures, and why something is missing."""
    columns = (
        *("measured", "unit", "rival", "rival's", "ratio", "at most", "holds"),
        *("limit", "limited by", "of limit"),
    )
    return {"figure": name, **dict.fromkeys(columns), "not measured": why}


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """As `timing.compare`; a call that fails doesn't keep the others from being timed."""
    failed = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:  # whatever it is, the other calls go on
            failed[name] = reason(error)
    good = {name: call for name, call in calls.items() if name not in failed}
    return Times(compare(good, rounds), failed)


def reason(error: Exception) -> str:
    """Why something wasn't measured."""
    if isinstance(error, UnmeasurableError):
        return str(error)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:WHY_LENGTH]


def timed(
    times: Times,
    name: str,
    rival: str | None = None,
    *,
    most: float | None = None,
    limit: Limit | None = None,
) -> Figure | Missing:
    """A call's time, beside another one's of the same rounds where that works."""
    if name in times.failed:
        return Missing(times.failed[name])
    measured = milliseconds(times.seconds[name])
    if rival is None:
        return Figure(measured, limit=limit)
    if rival in times.failed:
        return Figure(measured, limit=limit, lacks=f"{rival}: {times.failed[rival]}")
    return Figure(
        measured,
        rival=rival,
        others=milliseconds(times.seconds[rival]),
        ratio=ratio(times.seconds, name, rival),
        most=most,
        limit=limit,
    )
