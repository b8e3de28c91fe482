"""A run's worker group as far as its network: placed, joined, and its all-reduce measured.

Bandwidth of an all-reduce is what nccl-tests calls bus bandwidth: 2 (n - 1) / n times the bytes by
the time, which compares to what a link can do whatever the number of workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cmoe.config.settings import ClusterConfig
from cmoe.operations.preflight.machines import Machine, by_value, told
from cmoe.run.stalls import fitting, has, lacking, listed, needed
from cmoe.run.worker_failures import LOST
from cmoe.run.worker_group import worker_resources

MIB = 2**20
SIZES = {"gloo": (MIB, 16 * MIB), "nccl": (MIB, 16 * MIB, 256 * MIB)}
PAIRED = 16 * MIB  # bytes from one worker to the next
GRACE_S = 5.0  # for other workers to fail, too, once one has
ASKED_S = 5.0  # for a worker to say what it does
NAMED = 4  # workers at most, in a sentence


@dataclass(frozen=True)
class Link:
    """The way between two workers of which each is the other's neighbour.

    Attributes:
        machines: Where they are.
        ranks: Who they are.
        bandwidth: Bytes a second, one way.
    """

    machines: tuple[str, str]
    ranks: tuple[int, int]
    bandwidth: float

    @property
    def between(self) -> bool:
        """Whether it leaves a machine."""
        return self.machines[0] != self.machines[1]


@dataclass
class Exchange:
    """What was found of the group.

    Attributes:
        workers: By machine, how many it has.
        backend: `nccl` or `gloo`; empty where the group didn't come together.
        reduced: Bytes a second of all-reduces, by their bytes; none of a worker alone.
        links: Of the ring of all workers, in which those of a machine are neighbours.
        problems: What went wrong.
    """

    workers: dict[str, int] = field(default_factory=dict)
    backend: str = ""
    reduced: dict[int, float] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def network(self, machine: str) -> float | None:
        """The best link that leaves a machine; None where none does."""
        found = [k.bandwidth for k in self.links if k.between and machine in k.machines]
        return max(found, default=None)


class Group:
    """Workers where a run's would be, by a placement group that lasts until `close`.

    Args:
        cluster: The run's.
        wait_s: Seconds for each step.
    """

    def __init__(self, cluster: ClusterConfig, wait_s: float) -> None:
        self._cluster, self._wait_s = cluster, wait_s
        self._each = worker_resources(cluster)
        self._placed: Any = None
        self._members: list[Any] = []
        self.found = Exchange()

    def place(self) -> None:
        """Ask for room, as a run would; machines may have to be started for it."""
        import ray
        from ray.util import placement_group, remove_placement_group

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room, least = fitting(self._each, nodes), self._cluster.min_workers
        workers = self._cluster.workers
        if least is not None and room < workers:
            workers = max(least, room)
        group = placement_group([self._each] * workers, strategy="PACK")
        if group.wait(self._wait_s):
            self._placed, self._workers = group, workers
            return
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        there = ray.available_resources()
        free = listed({name: there.get(name, 0) for name in self._each})
        remove_placement_group(group)
        room = fitting(self._each, nodes)
        self.found.problems.append(
            f"{needed(workers, self._each)} weren't placed within {self._wait_s:.0f} s. The "
            f"cluster has {has(self._each, nodes)}, {free} free"
            + (f". {lacking(room)} or add machines" if room < workers else "")
        )

    def measure(self, machines: Sequence[Machine]) -> None:
        """Let the workers come together, and measure what they exchange.

        Args:
            machines: Of the cluster.
        """
        if self._placed is None:
            return
        from ray.util import placement_group_table

        names = {machine.node: machine.name for machine in machines}
        nodes = placement_group_table(self._placed)["bundles_to_node_id"]
        self._start()
        at = [names.get(nodes[n], nodes[n]) for n in range(self._workers)]
        abouts = self._all("starting", at, lambda member, _: member.about.remote())
        if abouts is None:
            return
        order = _ranked(abouts, [machine.node for machine in machines])
        self._members = [self._members[n] for n in order]
        abouts = [abouts[n] for n in order]
        at = [names.get(about["node"], about["address"]) for about in abouts]
        for name in at:
            self.found.workers[name] = self.found.workers.get(name, 0) + 1
        if (joined := self._join(abouts, at)) is None:
            return
        backend = joined[0]
        for size in SIZES[backend]:
            seconds = self._all(
                f"an all-reduce of {size // MIB} MiB by {backend}",
                at,
                partial(_reduce, size),
            )
            if seconds is None:
                return
            if self._workers > 1:
                moved = 2 * (self._workers - 1) / self._workers * size
                self.found.reduced[size] = moved / max(seconds)
        self.found.backend = backend
        self._measure_links(at)

    def _start(self) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from cmoe.operations.preflight import member

        with by_value(member):
            kind: Any = ray.remote(member.Member)
            self._members = [
                kind.options(
                    num_cpus=self._each["CPU"],
                    num_gpus=self._each.get("GPU", 0),
                    max_concurrency=2,  # one to say what the other does
                    runtime_env=self._cluster.runtime_env,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self._placed, n),
                ).remote()
                for n in range(self._workers)
            ]

    def _join(self, abouts: Sequence[Mapping[str, Any]], at: Sequence[str]) -> Any:
        address = f"{abouts[0]['address']}:{abouts[0]['port']}"
        gpus: dict[str, list[str]] = {}
        for about in abouts:
            gpus.setdefault(about["node"], []).extend(about["gpus"])

        def call(member: Any, rank: int) -> Any:
            theirs = gpus[abouts[rank]["node"]]
            mine = theirs.index(abouts[rank]["gpus"][0]) if theirs else 0
            return member.join.remote(rank, self._workers, address, theirs, mine, self._wait_s)

        return self._all("joining the group", at, call)

    def _measure_links(self, at: Sequence[str]) -> None:
        count = self._workers
        pairs = [(n, (n + 1) % count) for n in range(count if count > 2 else count - 1)]
        if not pairs:
            return
        taken = self._all(
            f"exchanging {PAIRED // MIB} MiB in pairs",
            at,
            lambda member, _: member.links.remote(pairs, PAIRED),
            turns=len(pairs),
        )
        if taken is None:
            return
        for number, (one, other) in enumerate(pairs):
            seconds = max(taken[one][number], taken[other][number])
            self.found.links.append(Link((at[one], at[other]), (one, other), PAIRED / seconds))

    def _all(
        self, doing: str, at: Sequence[str], call: Callable[[Any, int], Any], turns: int = 1
    ) -> list[Any] | None:
        """What every worker answers, in order; None where one doesn't, which is told then.

        Args:
            doing: What they do.
            at: By rank, the machine's name.
            call: Calls a method of a member; it gets its rank, too.
            turns: How many parts it has, each with as much time.
        """
        import ray

        asked = {call(member, rank): rank for rank, member in enumerate(self._members)}
        found: dict[int, Any] = {}
        failed: dict[int, str] = {}
        patience = turns * self._wait_s
        end = time.monotonic() + patience + GRACE_S  # torch says it itself first
        waiting = [*asked]
        while waiting and (left := end - time.monotonic()) > 0:
            ended, waiting = ray.wait(waiting, timeout=left)
            for answer in ended:
                try:
                    found[asked[answer]] = ray.get(answer)
                except Exception as error:  # whatever happened to a worker
                    failed[asked[answer]] = told(error)
                    end = min(end, time.monotonic() + GRACE_S)
        if not failed and not waiting:
            return [found[rank] for rank in range(len(self._members))]
        late = {asked[answer] for answer in waiting}
        self.found.problems += self._failures(doing, at, failed, late)
        return None

    def _failures(
        self, doing: str, at: Sequence[str], failed: Mapping[int, str], late: Iterable[int]
    ) -> list[str]:
        """Who failed by itself; or else who is where while others wait."""
        own = {rank: text for rank, text in failed.items() if not LOST.search(text)}
        named = own or dict(failed)
        ends = [
            f"{at[r]}: worker {r} failed while {doing}: {text}" for r, text in sorted(named.items())
        ]
        if ends:
            return ends[:NAMED]
        steps = {rank: self._at(rank) for rank in late}
        said = [f"worker {rank} ({at[rank]}) is {step}" for rank, step in sorted(steps.items())][
            :NAMED
        ]
        return [
            f"{doing} didn't end in time: {'; '.join(said)}. All ports have to "
            "be open between the machines; where one has several networks, name the right one in "
            "cluster.environment (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)"
        ]

    def _at(self, rank: int) -> str:
        import ray

        try:
            return str(ray.get(self._members[rank].at.remote(), timeout=ASKED_S))
        except Exception:  # stopped, lost, or never started
            return "without an answer"

    def close(self) -> None:
        """End the workers, and give their room back."""
        import ray
        from ray.util import remove_placement_group

        for member in self._members:
            ray.kill(member)
        if self._placed is not None:
            with suppress(Exception):  # with its machine it has gone
                remove_placement_group(self._placed)


def _reduce(size: int, member: Any, _: int) -> Any:
    return member.reduce.remote(size)


def _ranked(abouts: Sequence[Mapping[str, Any]], nodes: Sequence[str]) -> list[int]:
    """The workers' order: those of a machine side by side, the head's first, then by their GPUs."""
    place = {node: number for number, node in enumerate(nodes)}
    return sorted(
        range(len(abouts)),
        key=lambda n: (place.get(abouts[n]["node"], len(place)), abouts[n]["gpus"], n),
    )
