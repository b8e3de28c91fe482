"""A function applied to many items on all cores of a Ray cluster."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from cmoe.common.errors import KnownError
from cmoe.run.cluster import connect


@contextmanager
def ray_here() -> Iterator[None]:
    """Ray, for as long as the body runs: the cluster that is named, or one of this machine."""
    import ray

    connect()
    try:
        yield
    finally:
        ray.shutdown()


def on_all_cores(done: str) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]:
    """Like `map`, by Ray tasks: as many at a time as keep all cores busy, so that memory doesn't
    grow with the input.

    Args:
        done: What was done to the items, for a line about progress every ten seconds.
    """
    import ray

    def each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        task: Any = ray.remote(lambda item: function(item))  # a partial isn't a function to Ray
        limit = 2 * int(ray.cluster_resources().get("CPU", 1))
        running: deque[Any] = deque()
        shown, count = time.monotonic(), 0
        for item in items:
            if len(running) == limit:
                yield taken(running.popleft())
                count += 1
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    print(f"{count:,} parts {done}", flush=True)
            running.append(task.remote(item))
        while running:
            yield taken(running.popleft())

    def taken(task: Any) -> Any:
        try:
            return ray.get(task)
        except KnownError as error:  # with Ray's own text around it
            raise getattr(error, "cause", error) from None

    return each
