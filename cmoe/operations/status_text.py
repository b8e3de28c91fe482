"""Where runs are, as it is read: a page for one run, a line for each of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from cmoe.operations.status import RunStatus
from cmoe.run.holder import Holder
from cmoe.run.stalls import QUIET_S, SILENT_S, duration, named, where

WIDTH = 10  # of what stands before a row's text
SHOWN = 3  # restarts


def page(status: RunStatus) -> str:
    """All that is known of a run."""
    rows = [f"{status.url}: {_head(status)}"]
    rows += [f"  {name:<{WIDTH}}{text}" for name, text in _rows(status)]
    return "\n".join(rows)


def table(statuses: Sequence[RunStatus]) -> str:
    """A line for each run."""
    cells = [("run", "state", "tasks", "where", "last", "left"), *map(_cells, statuses)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _cells(status: RunStatus) -> tuple[str, ...]:
    left = status.remaining_s.get("run") if status.state == "running" else None
    last = status.measures.get("last")
    return (
        status.url,
        status.state,
        f"{status.learned}/{len(status.tasks)}" if status.tasks else "",
        "" if status.state == "finished" else _where(status),
        "" if last is None else f"{last:.1f}",
        "" if left is None else f"about {duration(left)}",
    )


def _head(status: RunStatus) -> str:
    done = f"{status.learned} of {len(status.tasks)} tasks learned"
    place = "" if status.state == "finished" else _where(status)
    return ", ".join(filter(None, (status.state, done, place)))


def _where(status: RunStatus) -> str:
    return where(status.place, status.tasks) if status.place else ""


def _rows(status: RunStatus) -> Iterator[tuple[str, str]]:
    running = status.state == "running"
    if status.why is not None:
        yield "why", status.why.replace("\n", "\n" + " " * (WIDTH + 2))
    if running:
        yield from _progress(status)
    if status.holder is not None:
        yield "driver", _driver(status.holder)
    yield from _restarts(status)
    if status.scores:
        scores = ", ".join(f"{task} {score:.1f}" for task, score in status.scores.items())
        named = {"Last": status.measures.get("last"), "BWT": status.measures.get("bwt")}
        measures = [f"; {name} {value:.1f}" for name, value in named.items() if value is not None]
        yield "accuracy", scores + "".join(measures)
    if status.sizes:
        sizes = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in status.sizes.items())
        yield "size", sizes
    for number, line in enumerate(status.lines):
        yield "log" if number == 0 else "", line


def _progress(status: RunStatus) -> Iterator[tuple[str, str]]:
    figures, remaining = status.figures, status.remaining_s
    speed = [
        f"{figures[name]:{form}}{unit}"
        for name, form, unit in (
            ("tokens_per_s", ",.0f", " tokens/s"),
            ("step_s", ".2f", " s a step"),
        )
        if name in figures
    ]
    if "loss" in figures:
        speed.append(f"loss {figures['loss']:.3f}")
    if speed:
        yield "speed", ", ".join(speed)
    left = [
        f"{duration(seconds)} of the {part}"
        for part in ("phase", "run")
        if (seconds := remaining.get(part)) is not None
    ]
    if left:
        yield "left", f"about {', '.join(left)}"
    if status.quiet_s is not None and status.quiet_s >= QUIET_S:
        yield "stalled", f"no progress for {status.quiet_s:.0f} s"


def _driver(holder: Holder) -> str:
    job = f", Ray job {holder.job}" if holder.job else ""
    text = f"process {holder.pid} of {holder.user} on {holder.host}{job}, since {holder.since}"
    if holder.released:
        return f"{text}; ended {holder.renewed}"
    return f"{text}; last sign of life {max(holder.age(), 0):.0f} s ago by this machine's clock"


def _restarts(status: RunStatus) -> Iterator[tuple[str, str]]:
    if status.state == "running":
        ranks = {int(rank): beat for rank, beat in status.workers.items()}
        silent = [
            f"{named(r, ranks)} silent for {b['silent']:.0f} s"
            for r, b in ranks.items()
            if b["silent"] > SILENT_S
        ]
        if ranks:
            yield "workers", "; ".join([f"{len(ranks)} at work", *silent])
    if status.jobs is None or not (status.jobs > 1 or status.restarted):
        return
    yield "restarts", f"{status.restarted} of the workers; job {status.jobs} of this run"
    for restart in status.restarts[-SHOWN:]:
        yield "", f"{datetime.fromtimestamp(restart['time']):%Y-%m-%d %H:%M:%S} {restart['why']}"
