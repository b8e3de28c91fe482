"""Measures what the loss of a service's processes costs its clients, under a light, steady load."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cmoe.serving.bench import measured_service
from cmoe.serving.launch import serving
from cmoe.serving.load import Outcome, drive, request_of, steady

PER_SECOND = 5.0  # requests, however long the answers take
TOKENS = 16  # of an answer at most
BEFORE_S = 5.0  # of load before the kill
CALM_S = 10.0  # without a failure, after which a service has recovered; Ray has noticed by then
PATIENCE_S = 120.0  # after which a service is left as it is


def recovery(file: Path, store: str | None, root: str, samples: int) -> list[dict[str, Any]]:
    """Silence and failed requests after a process of each kind was killed, one after the other.

    Args:
        file: The service's file, in Ray Serve's format.
        store: The store; None takes the file's.
        root: Folder of the dataset whose test samples are asked.
        samples: Number of samples of each task.

    Returns:
        A row for each kind of process: the longest time without an answer after the kill, the time
        until there were as many processes as before, the longest that a request took, and the
        failed requests by status (0: no connection).
    """
    service, tasks = measured_service(file, store, root, samples)
    bodies = [request_of(s, tokens=TOKENS) for task in tasks for s in task.test]
    url = service.url.rstrip("/")
    with serving(service):
        drive(url, bodies[:64], clients=8)
        kinds = [*map("replica of the {}".format, deployments(service.name)), "HTTP proxy"]
        return [_row(kind, *_killed(kind, service.name, url, bodies)) for kind in kinds]


def deployments(application: str) -> list[str]:
    """Names of an application's deployments."""
    from ray import serve

    return sorted(serve.status().applications[application].deployments)


def _whole(application: str) -> bool:
    """Whether the application and the proxies have all of their processes."""
    from ray import serve

    status = serve.status()
    deployed = status.applications[application].deployments.values()
    healthy = [*(each.status for each in deployed), *status.proxies.values()]
    return all(each == "HEALTHY" for each in healthy)


def kill(kind: str, application: str) -> None:
    """Kill one process of a kind at once, wherever in the cluster it runs."""
    import ray

    deployment = kind.rpartition(" ")[2]
    prefix = f"SERVE_REPLICA::{application}#{deployment}#"
    if kind == "HTTP proxy":
        prefix = "SERVE_PROXY_ACTOR-"
    actors = ray.util.list_named_actors(all_namespaces=True)
    name = next(actor["name"] for actor in actors if actor["name"].startswith(prefix))
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


def _killed(
    kind: str, application: str, url: str, bodies: Sequence[bytes]
) -> tuple[float, float, list[Outcome]]:
    """When a process was killed, when another was there, and what became of the requests."""
    outcomes: list[Outcome] = []
    calm = threading.Event()
    asking = steady(url, bodies, PER_SECOND, outcomes, calm.is_set, PATIENCE_S)
    load = threading.Thread(target=lambda: asyncio.run(asking))
    load.start()
    try:
        time.sleep(BEFORE_S)
        kill(kind, application)
        at = back = time.time()
        while time.time() - at < PATIENCE_S and not _recovered(outcomes, back):
            time.sleep(0.2)
            if not _whole(application):
                back = time.time()
    finally:
        calm.set()
        load.join()
    return at, back, outcomes


def _recovered(outcomes: Sequence[Outcome], back: float) -> bool:
    """Whether the last requests were answered, for as long as counts as calm."""
    now = time.time()
    ended = [o for o in list(outcomes) if o.begun + o.seconds > max(back, now - CALM_S)]
    return now - back > CALM_S and bool(ended) and all(o.status == 200 for o in ended)


def _row(kind: str, at: float, back: float, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    answered = sorted(o.begun + o.seconds for o in outcomes if o.status == 200)
    times = [at, *(end for end in answered if end > at)]
    after = [o for o in outcomes if o.begun + o.seconds > at]
    failed = Counter(o.status for o in after if o.status != 200)
    return {
        "killed": kind,
        "silence s": max((b - a for a, b in pairwise(times)), default=PATIENCE_S),
        "back s": back - at,
        "longest s": max(o.seconds for o in after),
        "requests": str(len(after)),
        "failed": str(failed.total()),
        "statuses": str(dict(failed)) if failed else None,
    }
