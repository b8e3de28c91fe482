"""What `cmoe check cluster` prints: a table by machine, figures of the group, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cmoe.common.versions import usual
from cmoe.operations.preflight.check import Report
from cmoe.operations.preflight.exchange import Exchange
from cmoe.operations.preflight.machines import Machine

GIB, MIB = 2**30, 2**20
HEADER = (
    *("machine", "address", "workers", "GPUs", "memory GiB", "disk GiB: runs", "temp", "cache"),
    *("clock s", "GB/s", ""),
)


def lines(report: Report) -> Iterator[str]:
    """A report for a reader."""
    rows = [HEADER, *(tuple(_row(report, each)) for each in report.machines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
    yield ""
    if report.seen:
        yield _versions(report)
    yield from _group(report.exchange)
    yield from (f"note: {text}" for text in report.notes)
    yield ""
    yield from (f"WRONG {text}" for text in report.problems)
    count, machines = len(report.problems), len(report.machines)
    end = "nothing is wrong" if not count else f"{count} wrong"
    yield f"{end}: {machines} machine{'s' if machines != 1 else ''} looked at"


def _row(report: Report, machine: Machine) -> Iterator[str]:
    seen = report.seen.get(machine.name)
    yield f"{machine.name}{' (head)' if machine.head else ''}"
    yield machine.address
    yield str(report.exchange.workers.get(machine.name, 0) or "-")
    if seen is None:
        yield from ("?",) * 7
    else:
        yield _gpus(seen.get("gpus", {}).get("gpus", []))
        memory = seen["memory"]
        yield f"{memory['free'] / GIB:.1f} of {memory['total'] / GIB:.1f}"
        disk = seen.get("disk", {})
        for place in ("runs", "temp", "cache"):
            yield f"{disk[place][0] / GIB:.0f}" if place in disk else "-"
        yield _clock(report, machine.name)
        network = report.exchange.network(machine.name)
        yield "-" if network is None else f"{network / 1e9:.2f}"
    mine = (f"{machine.name}: ", f"({machine.name})")
    wrong = any(text.startswith(mine[0]) or mine[1] in text for text in report.problems)
    yield "no answer" if seen is None else "WRONG" if wrong else "ok"


def _gpus(found: list[Mapping[str, Any]]) -> str:
    if not found:
        return "-"
    free = min(each["free"] or 0 for each in found) / GIB
    return f"{len(found)} {found[0]['name']}, {free:.1f} GiB free"


def _clock(report: Report, name: str) -> str:
    """How far a machine's clock is ahead of the head's."""
    head = report.seen.get(report.machines[0].name, {}).get("clock", (0.0, 0.0))
    if "clock" not in report.seen[name]:
        return "-"
    offset, bound = report.seen[name]["clock"]
    if name == report.machines[0].name:
        return "0"
    return f"{offset - head[0]:+.3f} ± {bound + head[1]:.3f}"


def _versions(report: Report) -> str:
    """Those that most machines have."""
    found = {name: each["versions"] for name, each in report.seen.items()}
    head, names = report.machines[0].name, next(iter(found.values()))
    common = {w: usual({n: each.get(w, "?") for n, each in found.items()}, head) for w in names}
    return f"versions: {', '.join(f'{what} {value}' for what, value in common.items())}"


def _group(found: Exchange) -> Iterator[str]:
    if not found.backend:
        return
    workers = sum(found.workers.values())
    if not found.reduced:
        yield f"one worker by {found.backend}: nothing is exchanged"
        return
    figures = ", ".join(f"{s // MIB} MiB {b / 1e9:.2f} GB/s" for s, b in found.reduced.items())
    yield f"all-reduce of {workers} workers by {found.backend}: {figures} (bus bandwidth)"
    for within in (False, True):
        links = [link for link in found.links if link.between != within]
        if not links:
            continue
        first, *_, last = sorted((k.bandwidth, k.ranks) for k in [*links, *links])
        slowest = f"{first[0] / 1e9:.2f} GB/s (workers {first[1][0]} and {first[1][1]})"
        most = f" to {last[0] / 1e9:.2f} GB/s" if len(links) > 1 else ""
        where = "on one machine" if within else "between machines"
        yield f"from one worker to the next {where}: {slowest}{most}"
