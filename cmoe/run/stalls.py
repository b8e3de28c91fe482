"""What is said while nothing happens: who is behind, or what the workers wait for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

QUIET_S = 60.0  # without any progress, until it is said
WAITING_S = 10.0  # for workers to be placed, until it is said
SILENT_S = 20.0  # without a beat: several of a worker's are missing
NAMED = 4  # workers at most, of each kind
GOES_ON = "the same command goes on with what was saved"


class Spaced:
    """When a state that lasts is told: after `first` seconds, twice as many, four times, ..."""

    def __init__(self, first: float) -> None:
        self.first = self._next = first

    def due(self, lasted: float) -> bool:
        """Whether it is to be told now."""
        if lasted < self.first:
            self._next = self.first
        if lasted < self._next:
            return False
        while self._next <= lasted:
            self._next *= 2
        return True


def stalled(quiet: float, beats: Mapping[int, Mapping[str, Any]], tasks: Sequence[str]) -> str:
    """That a group makes no progress, and which workers are behind.

    Args:
        quiet: Seconds since any worker's last progress.
        beats: As of `Board.beats`.
        tasks: The stream's.
    """
    text = f"no progress for {quiet:.0f} s"
    if not beats:
        return f"{text}: no worker has begun its work yet"
    late = behind(beats)
    place = where(beats[min(late)]["place"], tasks)
    parts = [f"{text}: {place}", *_each(late, beats)]
    others = sorted(rank for rank in beats.keys() - late if beats[rank]["waits"])
    if others:
        parts.append(f"{_ranks(others)} {'wait' if len(others) > 1 else 'waits'} for that")
    return "; ".join(parts)


def silent(lasted: float, driver: int) -> str:
    """That Ray's processes beside the driver don't answer.

    Args:
        lasted: Seconds so far.
        driver: The driver's process.
    """
    return (
        f"Ray's processes on this machine have not answered for {lasted:.0f} s. If its raylet is "
        f"gone, `kill -KILL {driver}` ends this job, and {GOES_ON}"
    )


def behind(beats: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """The workers that others wait for, as far as can be told; all, where that is open.

    Those whose beats fail to come; or else that aren't in a collective; among these, in one phase,
    those with the fewest steps.
    """
    silent = {rank for rank, beat in beats.items() if beat["silent"] > SILENT_S}
    if silent:
        return silent
    busy = {rank for rank, beat in beats.items() if not beat["waits"]} or set(beats)
    places = {rank: beats[rank]["place"] for rank in busy}
    phases = {(p.get("index"), p.get("phase"), p.get("of")) for p in places.values()}
    steps = {rank: place.get("step", 0) for rank, place in places.items()}
    if len(phases) == 1:
        return {rank for rank in busy if steps[rank] == min(steps.values())}
    return busy


def _each(ranks: Iterable[int], beats: Mapping[int, Mapping[str, Any]]) -> list[str]:
    ranks = sorted(ranks)
    said = [f"{named(rank, beats)} {_state(beats[rank])}" for rank in ranks[:NAMED]]
    return said + ([f"{len(ranks) - NAMED} more alike"] if len(ranks) > NAMED else [])


def named(rank: int, beats: Mapping[int, Mapping[str, Any]]) -> str:
    """A worker by its rank, and where it is."""
    if rank not in beats:
        return f"worker {rank}"
    return f"worker {rank} ({beats[rank]['host']}, pid {beats[rank]['pid']})"


def _state(beat: Mapping[str, Any]) -> str:
    if beat["silent"] > SILENT_S:
        return f"has not answered for {beat['silent']:.0f} s, it was in {beat['at']}"
    return f"{'waits' if beat['waits'] else 'is'} in {beat['at']}"


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) > NAMED:
        return f"{len(ranks)} other workers"
    return f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def where(place: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """A worker's place in the stream."""
    if "phase" not in place:
        return "the workers start"
    if "index" not in place:
        return str(place["phase"])
    return f"{stage(place['index'], tasks)}, {phase(place)}"


def stage(index: int, tasks: Sequence[str]) -> str:
    """A place of the stream; before its first task it is the base's."""
    return "base" if index < 0 else f"task {index + 1}/{len(tasks)} {tasks[index]}"


def phase(place: Mapping[str, Any]) -> str:
    """What is done there, and how far it has come."""
    of = f" of {place['of']}" if "of" in place else ""
    steps = f", step {place['step']} of {place['steps']}" if "steps" in place else ""
    return f"{place['phase']}{of}{steps}"


def duration(seconds: float) -> str:
    """A time that is still to come, as it is read; never none at all."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# While there are no workers


def waiting(
    lasted: float,
    workers: int,
    each: Mapping[str, float],
    nodes: Sequence[Mapping[str, float]],
    free: Mapping[str, float],
) -> str:
    """That workers can't be placed, and why.

    Args:
        lasted: Seconds so far.
        workers: How many are needed.
        each: What one asks for, by resource.
        nodes: What each machine of the cluster has in all.
        free: What the cluster has free.
    """
    text = f"waiting {lasted:.0f} s for {needed(workers, each)}: the cluster has {has(each, nodes)}"
    text += f"; {listed({name: free.get(name, 0) for name in each})} free"
    if (room := fitting(each, nodes)) < workers:
        text += f". {lacking(room)} unless machines are added it never starts"
    elif lasted >= QUIET_S:
        text += (
            ". If nobody else uses the rest, Ray has lost count of it (it does where a clock was "
            f"set back): end this job, and {GOES_ON}"
        )
    return text


def lacking(room: int) -> str:
    """That a cluster is too small."""
    return (
        f"It has room for {room} of these workers at most (lower cluster.workers, "
        "cluster.cpus_per_worker, or set cluster.gpu false);"
    )


def needed(workers: int, each: Mapping[str, float]) -> str:
    """What the workers ask for."""
    return f"{workers} worker{'s' if workers > 1 else ''} with {listed(each)} each"


def has(each: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    """What a cluster has of what is asked for."""
    total = {name: sum(node.get(name, 0) for node in nodes) for name in each}
    machines = f"{len(nodes)} machine{'s' if len(nodes) != 1 else ''}"
    return f"{listed(total)} in all on {machines}"


def fitting(each: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers a cluster could take if it were idle; one lies on one machine."""
    asked = {name: amount for name, amount in each.items() if amount > 0}
    return sum(int(min(node.get(n, 0) // a for n, a in asked.items())) for node in nodes)


def listed(amounts: Mapping[str, float]) -> str:
    """Resources as they are read: `2 CPUs, 1 GPU`."""
    return ", ".join(f"{n:g} {name}{'s' if n != 1 else ''}" for name, n in amounts.items())
