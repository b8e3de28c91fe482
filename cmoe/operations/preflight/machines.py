"""The machines of a Ray cluster: each is asked by an actor there, and none is waited for long."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

PINGS = 5  # of a clock; the quickest counts
LENGTH = 400  # characters of an error


@dataclass(frozen=True)
class Machine:
    """A node of the cluster.

    Attributes:
        node: Ray's id.
        name: What it is called in sentences; no other machine has it.
        address: Its IP address.
        head: Whether it is Ray's head.
        resources: Ray's, in all.
    """

    node: str
    name: str
    address: str
    head: bool
    resources: Mapping[str, float]


def machines_of(nodes: Iterable[Mapping[str, Any]]) -> list[Machine]:
    """The machines that Ray has alive, the head first."""
    alive = [node for node in nodes if node["Alive"]]
    called = {node["NodeID"]: _called(node) for node in alive}
    counts = Counter(called.values())
    found = [
        Machine(
            node["NodeID"],
            name if counts[name] == 1 else f"{name} (node {node['NodeID'][:6]})",
            node["NodeManagerAddress"],
            "node:__internal_head__" in node["Resources"],
            node["Resources"],
        )
        for node in alive
        for name in [called[node["NodeID"]]]
    ]
    return sorted(found, key=lambda machine: (not machine.head, machine.name))


def _called(node: Mapping[str, Any]) -> str:
    """A node's own name where it was given one, or else its host's."""
    given = node.get("NodeName") or ""
    return given if given not in ("", node["NodeManagerAddress"]) else node["NodeManagerHostname"]


@contextmanager
def by_value(*modules: ModuleType) -> Iterator[None]:
    """Let the code of modules travel with the actors that are made in the body."""
    from ray import cloudpickle

    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


class Asked:
    """Machines with a scout on each.

    Args:
        machines: To be looked at.
        wait_s: Seconds that a machine has for an answer.

    Attributes:
        lost: By name, why a machine isn't asked any more.
    """

    def __init__(self, machines: Iterable[Machine], wait_s: float) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from cmoe.common import versions
        from cmoe.operations.preflight import scout

        with by_value(scout, versions):
            kind: Any = ray.remote(num_cpus=0)(scout.Scout)
            self._scouts = {
                each.name: kind.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(each.node, soft=False)
                ).remote()
                for each in machines
            }
        self._wait_s = wait_s
        self.lost: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """Of the machines that have answered so far."""
        return [name for name in self._scouts if name not in self.lost]

    def ask(
        self, doing: str, call: Callable[[Any, str], Any], names: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """What machines answer, by name; those that don't are lost.

        Args:
            doing: What they do for it, behind "while".
            call: Calls a method of a scout; it gets the machine's name, too.
            names: Of those to ask; None asks all. Lost ones aren't asked.
        """
        import ray

        names = [n for n in self.names if names is None or n in names]
        asked = {call(self._scouts[n], n): n for n in names}
        if not asked:
            return {}
        ended, late = ray.wait([*asked], num_returns=len(asked), timeout=self._wait_s)
        found = {}
        for answer in ended:
            try:
                found[asked[answer]] = ray.get(answer)
            except Exception as error:  # whatever ended the process, or went wrong there
                self.lost[asked[answer]] = f"failed while {doing}: {told(error)}"
        for answer in late:
            self.lost[asked[answer]] = f"didn't answer within {self._wait_s:.0f} s while {doing}"
        return found

    def clocks(self) -> dict[str, tuple[float, float]]:
        """How far each machine's clock is ahead of this process's, and how sure that is, in s.

        The clock was read somewhere between question and answer: half of that time is the bound.
        """
        found: dict[str, tuple[float, float]] = {}
        for name in self.names:
            for _ in range(PINGS):
                asked = time.time()
                said = self.ask("telling its clock", lambda scout, _: scout.clock.remote(), [name])
                answered = time.time()
                if name not in said:
                    break
                bound = (answered - asked) / 2
                if name not in found or bound < found[name][1]:
                    found[name] = said[name] - (asked + answered) / 2, bound
        return found

    def close(self) -> None:
        """End the scouts."""
        import ray

        for scout in self._scouts.values():
            ray.kill(scout)


def told(error: BaseException) -> str:
    """An error of Ray's, or of what ran there, in a line."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:LENGTH]
