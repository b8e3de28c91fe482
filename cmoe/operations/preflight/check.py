"""The whole look at a cluster: every machine, and the worker group that a run would have."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from cmoe.common.errors import RunError
from cmoe.common.storage import is_remote
from cmoe.common.versions import versions
from cmoe.config.tree import RunConfig
from cmoe.operations.preflight import findings
from cmoe.operations.preflight.exchange import Exchange, Group
from cmoe.operations.preflight.findings import Needs
from cmoe.operations.preflight.machines import Asked, Machine, machines_of
from cmoe.run.launch import require_kept, require_uploaded
from cmoe.run.worker_group import rooted, session, worker_resources


@dataclass
class Report:
    """What was found.

    Attributes:
        machines: Of the cluster, the head first.
        seen: By machine, what its scout told; nothing of a lost one.
        exchange: Of the worker group.
        problems: What is wrong, a sentence each, with the machine first.
        notes: What isn't wrong, but to be known.
    """

    machines: list[Machine] = field(default_factory=list)
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    exchange: Exchange = field(default_factory=Exchange)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types: bytes, seconds, bytes a second."""
        machines = {
            each.name: {"address": each.address, "head": each.head, **self.seen.get(each.name, {})}
            for each in self.machines
        }
        group = asdict(self.exchange)
        del group["problems"]
        return {
            "ok": not self.problems,
            "machines": machines,
            "group": group,
            "problems": self.problems,
            "notes": self.notes,
        }


def check_cluster(
    config: RunConfig, needs: Needs, wait_s: float, show: Callable[[str], object]
) -> Report:
    """Look at the cluster that a run would work on.

    Args:
        config: The run.
        needs: What it needs of disks and GPUs.
        wait_s: Seconds that a machine has for each answer.
        show: Told what is looked at.

    Raises:
        RunError: No Ray cluster answers.
    """
    import ray

    report = Report()
    for require in (lambda: require_kept(config.runs), lambda: require_uploaded(config)):
        try:
            require()
        except RunError as error:
            report.problems.append(str(error))
    config = rooted(config)
    with session(config):
        group = Group(config.cluster, wait_s)
        try:
            show(f"placing {config.cluster.workers} workers")
            group.place()
            report.machines = machines_of(ray.nodes())
            show(f"looking at {len(report.machines)} machines")
            _look(config, report, wait_s)
            show("measuring what the workers exchange")
            group.measure(report.machines)
        finally:
            group.close()
        report.exchange = group.found
        _judge(config, needs, report)
    return report


def _look(config: RunConfig, report: Report, wait_s: float) -> None:
    """Ask every machine's scout, and end them."""
    asked, seen = Asked(report.machines, wait_s), report.seen

    def ask(key: str, doing: str, call: Callable[[Any, str], Any]) -> None:
        for name, told in asked.ask(doing, call).items():
            seen.setdefault(name, {})[key] = told

    try:
        about = asked.ask("starting a process", lambda scout, _: scout.about.remote())
        seen.update(about)
        for name, clock in asked.clocks().items():
            seen[name]["clock"] = clock
        ask("gpus", "asking its GPUs", lambda scout, _: scout.gpus.remote())
        local = {} if is_remote(config.runs) else {"runs": config.runs}
        for name in asked.names:
            seen[name]["places"] |= local
        ask("disk", "looking at its disks", lambda s, n: s.disk.remote(seen[n]["places"]))
        token = f".cmoe-check-{uuid4().hex[:12]}"
        files = {each.name: f"-{number}" for number, each in enumerate(report.machines)}
        with _Marked(asked, report, token) as marked:
            for key, (path, make) in _folders(config).items():
                marked.compare(key, path, make)
            url = config.url if is_remote(config.runs) else config.runs
            ask(
                "rights",
                f"using {url}",
                lambda scout, n: scout.rights.remote(url, token + files[n]),
            )
        if is_remote(config.data.root):
            root = config.data.root
            ask("data", f"listing {root}", lambda scout, _: scout.readable.remote(root))
        base = config.model.path, config.model.revision
        ask("base", f"looking for {config.model.name}", lambda scout, _: scout.base.remote(*base))
    finally:
        asked.close()
        for name, why in asked.lost.items():
            report.problems.append(f"{name}: {why}; look at the machine, and at Ray there")


def _folders(config: RunConfig) -> dict[str, tuple[str, bool]]:
    """Paths that have to be the same folder everywhere, and whether a run would make them."""
    data = config.data
    found = {"runs": (config.runs, True)}
    if not (
        data.only_own and all(is_remote(o.train) and is_remote(o.test) for o in data.own.values())
    ):
        found["data.root"] = data.root, data.generate
    if config.model.name != "mini" and Path(config.model.name).is_absolute():
        found["model.name"] = config.model.name, False
    return {key: each for key, each in found.items() if not is_remote(each[0])}


class _Marked:
    """Folders in which the head leaves a mark, for the others to find; removed in the end."""

    def __init__(self, asked: Asked, report: Report, token: str) -> None:
        self._asked, self._report, self._token = asked, report, token
        self._head = report.machines[0].name
        self._left: list[tuple[str, list[str]]] = []

    def __enter__(self) -> _Marked:
        return self

    def compare(self, key: str, path: str, make: bool) -> None:
        """Find out who has another folder under a path."""
        head, token = self._head, self._token
        told = self._asked.ask(
            f"writing to {path}", lambda scout, _: scout.mark.remote(path, token, make), [head]
        )
        if head not in told:
            return
        self._left.append((path, told[head]["made"]))
        folders = self._asked.ask(
            f"reading {path}", lambda scout, _: scout.seen.remote(path, token)
        )
        wrong, notes = findings.of_folder(key, path, folders, head)
        self._report.problems += wrong
        self._report.notes += notes

    def __exit__(self, *_: object) -> None:
        for path, made in reversed(self._left):
            self._asked.ask(
                f"removing a file from {path}",
                partial(_unmark, path, self._token, made),
                [self._head],
            )


def _unmark(path: str, token: str, made: list[str], scout: Any, _: str) -> Any:
    return scout.unmark.remote(path, token, made)


def _judge(config: RunConfig, needs: Needs, report: Report) -> None:
    """Say what is wrong with what was seen."""
    seen, found, problems = report.seen, report.exchange, report.problems
    head = report.machines[0].name
    gpu = "GPU" in worker_resources(config.cluster)
    gpus = {each.name: each.resources.get("GPU", 0.0) for each in report.machines}
    if seen:
        problems += findings.of_versions(seen, head, versions(), socket.gethostname())
        problems += findings.of_clocks(seen, head)
        if config.cluster.gpu is not False:
            wrong, notes = findings.of_gpu_counts(seen, gpus)
            problems += wrong
            report.notes += notes
        if gpu:
            problems += findings.of_gpus(seen, head, needs, config.model.dtype)
        problems += findings.of_disks(seen, needs, is_remote(config.runs))
        loaders = config.data.loader_workers > 0
        problems += findings.of_memory(seen, found.workers, loaders, gpu)
        problems += findings.of_storage(seen)
    problems += findings.of_group(found)
