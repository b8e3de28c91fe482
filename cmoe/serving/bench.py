"""What serving costs: a load from separate processes, beside the two ceilings of the same run."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from cmoe.data.batches import ChatTurn, Collator
from cmoe.data.coin import read_tasks
from cmoe.data.samples import Sample
from cmoe.data.settings import DataConfig
from cmoe.serving.app import Executor
from cmoe.serving.launch import read_service, serving
from cmoe.serving.load import Reply, drive, request_of
from cmoe.serving.messages import Question, Said
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store

Texts = list[tuple[str, str | None]]

TOKENS, CLIENTS, ALONE = 16, 32, 96
METRICS_S = 12.0  # between two reports of a replica's figures to Ray's agent


def load(file: Path, store: str | None, root: str, samples: int) -> list[dict[str, Any]]:
    """A served store under load, one client alone, and both ceilings.

    Args:
        file: Of the service, in Ray Serve's format.
        store: The log; None takes the file's.
        root: Of the data that its tasks' test samples are taken from.
        samples: Of each task.

    Returns:
        Rows with requests per second, their ratio to one client alone, latencies, and how many
        answers differ from those of offline generation.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service = read_service(file, store=store, host="127.0.0.1", port=port, auth=False)
    # As in the benchmark: else the base answers what no task claims.
    service = replace(service, config=replace(service.config, reject_unknown=False))
    names = Store.open(service.config.store).tasks
    tasks = read_tasks(DataConfig(root=root, tasks=names, test_samples=samples), seed=0)
    mixed = [s for row in zip(*(t.test for t in tasks), strict=False) for s in row]
    bodies = [request_of(s, tokens=TOKENS) for s in mixed]
    seconds, texts = offline(service.config, mixed)
    rows = [_row("offline, one process", len(mixed) / seconds, None)]
    url = service.url.rstrip("/")
    with serving(service):
        drive(url, bodies[:64], clients=8)
        alone = drive(url, bodies[:ALONE], clients=1)
        before = _spent(url)
        under = drive(url, bodies, clients=CLIENTS)
        spent = {name: total - before.get(name, 0.0) for name, total in _spent(url).items()}
    with serving(service, Instant):
        drive(url, bodies[:64], clients=8)
        instant = drive(url, bodies, clients=CLIENTS)
    rows.append(_row("executor answers at once", _rate(instant), instant))
    rows.append(_row("one client", _rate(alone), alone, texts))
    rows.append(_row(f"{CLIENTS} clients", _rate(under), under, texts))
    # Of a request's time: until its task was known, and until its prompt was read behind that.
    whole = sum(r.seconds for r in under)
    rows[-1] |= {f"in {name}": total / whole for name, total in spent.items()}
    least = min(rows[0]["per second"], rows[1]["per second"])
    for row in rows:
        row["of one client"] = row["per second"] / rows[2]["per second"]
        row["of the ceiling"] = row["per second"] / least
    return rows


def offline(
    config: ServeConfig, samples: Sequence[Sample]
) -> tuple[float, list[tuple[str, str | None]]]:
    """Seconds, and texts and tasks, of all samples in one process: prepared, located, answered."""
    from cmoe.data.images import load_image
    from cmoe.serving.engines.builtin.engine import Engine, Event, Job
    from cmoe.serving.engines.builtin.store_follower import follow

    following, processor = follow(config)
    model = following.model
    collator = Collator(processor, 10**6, 1)
    engine = Engine(model, processor.tokenizer, config.engine)
    came: list[Queue[Event]] = [Queue() for _ in samples]
    start = time.monotonic()
    jobs = []
    for sample in samples:
        parts: tuple[str | None, ...] = (sample.text,)
        picture = None
        if sample.image is not None:
            parts, picture = (None, *parts), load_image(sample.image, collator.limits)
        prompt = collator.conversation([ChatTurn("user", parts)], picture)
        jobs.append(Job(prompt, None, TOKENS))
    for job, queue in zip(jobs, came, strict=True):
        engine.submit(job, queue.put)
    events = [queue.get() for queue in came]
    seconds = time.monotonic() - start
    engine.close()
    return seconds, [(e.text, model.tasks[e.task]) for e in events]


def _spent(url: str) -> dict[str, float]:
    """Seconds of all requests so far, by where they were spent, as the service itself counts."""
    time.sleep(METRICS_S)
    with urllib.request.urlopen(f"{url}/metrics") as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    sums = {"locator": "ray_cmoe_locate_seconds_sum", "queue": "ray_cmoe_queue_seconds_sum"}
    return {
        where: sum(s.value for f in families for s in f.samples if s.name == name)
        for where, name in sums.items()
    }


def _rate(replies: Sequence[Reply]) -> float:
    """Requests per second, from the first one's beginning to the last one's end."""
    begun = min(r.begun for r in replies)
    return len(replies) / (max(r.begun + r.seconds for r in replies) - begun)


def _row(
    name: str,
    rate: float,
    replies: Sequence[Reply] | None,
    texts: Sequence[tuple[str, str | None]] | None = None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"load": name, "per second": rate, "p50 ms": None, "p99 ms": None}
    if replies is not None:
        ordered = sorted(r.seconds for r in replies)
        row["p50 ms"] = 1000 * ordered[len(ordered) // 2]
        row["p99 ms"] = 1000 * ordered[int(len(ordered) * 0.99)]
    row["failed"] = None if replies is None else str(sum(r.status != 200 for r in replies))
    row["different"] = None
    if replies is not None and texts is not None:
        pairs = zip(replies, texts, strict=False)
        row["different"] = str(sum((r.text, r.task) != known for r, known in pairs))
    if replies is not None and row["failed"] != "0":
        row["statuses"] = str(dict(Counter(r.status for r in replies)))
    return row


class Instant(Executor):
    """Answers at once, and nothing: what is left of the time is the way there and back."""

    async def answer(self, question: Question) -> Said:
        return Said("", 1, "stop", None, None, "")
