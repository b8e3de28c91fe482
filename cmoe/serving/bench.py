"""Measures a service: under loads from separate processes, beside two ceilings of the same run."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Self

from prometheus_client.parser import text_string_to_metric_families

from cmoe.data.batches import ChatTurn, Collator
from cmoe.data.coin import read_tasks
from cmoe.data.images import load_image
from cmoe.data.samples import Sample, Task
from cmoe.data.settings import DataConfig
from cmoe.modeling.routers import BASE
from cmoe.serving.engines.builtin.executor import BuiltinExecutor
from cmoe.serving.engines.registry import register_executor
from cmoe.serving.launch import Service, free_port, read_service, serving
from cmoe.serving.load import Outcome, ask, drive, request_of, session, steady
from cmoe.serving.messages import AnswerPart, Location, Prompt, Sampling
from cmoe.serving.prompts import TensorPrompt, to_arrays
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Answer = tuple[str, str | None]
"""An answer's text, and the task that gave it."""

BUILTIN = "builtin"  # the executor that others are compared with
TOKENS = 16  # of an answer at most
CLIENTS = 32
ALONE = 96  # requests of the one client alone
OFFERED, OFFERED_S = (0.5, 0.9, 1.5), 20.0  # of what many clients get answered; seconds of each
PATIENCE_S = 60.0  # after which a service isn't waited for
METRICS_S = 12.0  # longer than Ray's agents take to hear of a replica's metrics


def measured_service(
    file: Path, store: str | None, root: str, samples: int
) -> tuple[Service, Sequence[Task]]:
    """A service on a free port of this machine, without keys, and the tasks that it is asked.

    Args:
        file: The service's file, in Ray Serve's format.
        store: The store; None takes the file's.
        root: Folder of the dataset whose test samples are asked.
        samples: Number of samples of each task.
    """
    service = read_service(file, store=store, host="127.0.0.1", port=free_port(), auth=False)
    # As evaluation does; otherwise the base would answer what no task claims.
    service = replace(service, config=replace(service.config, reject_unknown=False))
    names = Store.open(service.config.store).tasks
    return service, read_tasks(DataConfig(root=root, tasks=names, test_samples=samples), seed=0)


def load(file: Path, store: str | None, root: str, samples: int) -> list[dict[str, Any]]:
    """A served store under load, beside one client alone and what the machine can do at most.

    The ceilings are the same answers of the builtin executor in one process without a service, and
    the HTTP application with no model behind it. Beside another executor the builtin one is served,
    too.

    Args:
        file: The service's file, in Ray Serve's format.
        store: The store; None takes the file's.
        root: Folder of the dataset whose test samples are asked.
        samples: Number of samples of each task.

    Returns:
        Rows with requests per second, their ratio to one client alone, latencies, and the number of
        answers that differ from those without a service. Where requests come at a rate, however
        long the answers take, latencies are of what was answered, and `normal after s` is the time
        from the load's end until one client is answered as fast as before.
    """
    service, tasks = measured_service(file, store, root, samples)
    mixed = [s for row in zip(*(t.test for t in tasks), strict=False) for s in row]
    bodies = [request_of(s, tokens=TOKENS) for s in mixed]
    seconds, answers = offline(service.config, mixed)
    rows = [_row("offline, one process", len(mixed) / seconds, None)]
    with TemporaryDirectory() as folder:
        bare = with_engine(service, "instant", store=without_tasks(service.config.store, folder))
        with serving(bare):
            url = service.url.rstrip("/")
            drive(url, bodies[:64], clients=8)
            instant = drive(url, bodies, clients=CLIENTS)
    rows.append(_row("HTTP with no model", _rate(instant), instant))
    with serving(service):
        drive(url, bodies[:64], clients=8)
        alone = drive(url, bodies[:ALONE], clients=1)
        rows.append(_row("one client", _rate(alone), alone, answers))
        before = _spent(url)
        under = drive(url, bodies, clients=CLIENTS)
        spent = {name: total - before.get(name, 0.0) for name, total in _spent(url).items()}
        rows.append(_row(f"{CLIENTS} clients", _rate(under), under, answers))
        rows += [_offered(url, bodies, share, _rate(under), alone) for share in OFFERED]
    if service.config.engine.kind != BUILTIN:
        with serving(with_engine(service, BUILTIN)):
            drive(url, bodies[:64], clients=8)
            other = drive(url, bodies, clients=CLIENTS)
        rows.append(_row(f"{CLIENTS} clients, {BUILTIN} engine", _rate(other), other, answers))
    # Parts of a request's time: until its task was known, and then until its prompt was read.
    whole = sum(r.seconds for r in under)
    rows[3] |= {f"in {name}": total / whole for name, total in spent.items()}
    least = min(rows[0]["per second"], rows[1]["per second"])
    for row in rows:
        row["of one client"] = row["per second"] / rows[2]["per second"]
        row["of the ceiling"] = row["per second"] / least
    return rows


def with_engine(service: Service, kind: str, **values: Any) -> Service:
    """A service with another executor, which is in the project's own environment, and with other
    values of its settings.
    """
    engine = replace(service.config.engine, kind=kind)
    options = {**service.deployments.get("executor", {})}
    actor = {n: v for n, v in options.get("ray_actor_options", {}).items() if n != "runtime_env"}
    deployments = {**service.deployments, "executor": options | {"ray_actor_options": actor}}
    config = replace(service.config, engine=engine, **values)
    return replace(service, config=config, deployments=deployments)


def without_tasks(store: str, folder: str) -> str:
    """A store like another one, with nothing learned, whose locator no deployment has."""
    header = Store.follow(store).header
    settings: dict[str, Any] = {**header.settings}
    settings["locator"] = {**settings["locator"], "placement": "inline"}
    made = Store.create(
        f"{folder}/store", base=header.base, settings=settings, config=header.config
    )
    return made.url


def _offered(
    url: str, bodies: Sequence[bytes], share: float, capacity: float, alone: Sequence[Outcome]
) -> dict[str, Any]:
    """What becomes of requests that come at a share of what many clients get answered."""
    outcomes: list[Outcome] = []
    end = time.monotonic() + OFFERED_S
    asyncio.run(steady(url, bodies, share * capacity, outcomes, lambda: time.monotonic() > end))
    over = end
    calm = 1.5 * sorted(r.seconds for r in alone)[len(alone) // 2]
    while time.monotonic() - end < PATIENCE_S:
        one = asyncio.run(_ask_once(url, bodies[0]))
        if one.status == 200 and one.seconds <= calm:
            break
        over = time.monotonic()
    answered = [o for o in outcomes if o.status == 200]
    row = _row(f"{share:g} of that, offered", _rate(answered), answered)
    failed = Counter(o.status for o in outcomes if o.status != 200)
    row |= {"failed": str(failed.total()), "normal after s": over - end}
    return row | ({"statuses": str(dict(failed))} if failed else {})


async def _ask_once(url: str, body: bytes) -> Outcome:
    async with session(1, None, PATIENCE_S) as asking:
        return await ask(asking, url, 0, body)


def offline(config: ServeConfig, samples: Sequence[Sample]) -> tuple[float, list[Answer]]:
    """Prepare, locate and answer all samples in this process, with the builtin executor.

    Returns:
        Seconds, and the answers in the order of the samples.
    """
    return asyncio.run(_offline(config, samples))


async def _offline(config: ServeConfig, samples: Sequence[Sample]) -> tuple[float, list[Answer]]:
    executor = await BuiltinExecutor.load(Store.open(config.store), config)
    collator = Collator(executor.processor, 10**6, 1)

    async def answer(prompt: Prompt) -> Answer:
        async with aclosing(executor.submit(prompt, None, Sampling(TOKENS), stream=False)) as parts:
            part = await anext(parts)
        return part.text, executor.tasks[part.task]

    start = time.monotonic()
    prompts = [to_arrays(_prompt(sample, collator)) for sample in samples]
    answers = await asyncio.gather(*map(answer, prompts))
    seconds = time.monotonic() - start
    executor.close()
    return seconds, answers


def _prompt(sample: Sample, collator: Collator) -> TensorPrompt:
    """A sample's prompt, made as the gateway makes it."""
    images = [load_image(image, collator.limits) for image in sample.asked_about]
    return collator.conversation([ChatTurn("user", sample.question)], images)


def _spent(url: str) -> dict[str, float]:
    """Seconds of all requests so far, by where they were spent, from the service's own metrics."""
    time.sleep(METRICS_S)
    with urllib.request.urlopen(f"{url}/metrics") as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    sums = {"locator": "ray_cmoe_locate_seconds_sum", "queue": "ray_cmoe_queue_seconds_sum"}
    return {
        where: sum(s.value for f in families for s in f.samples if s.name == name)
        for where, name in sums.items()
    }


def _rate(replies: Sequence[Outcome]) -> float:
    """Requests per second, from the first one's beginning to the last one's end."""
    if not replies:
        return 0.0
    begun = min(r.begun for r in replies)
    return len(replies) / (max(r.begun + r.seconds for r in replies) - begun)


def _row(
    name: str,
    rate: float,
    replies: Sequence[Outcome] | None,
    answers: Sequence[Answer] | None = None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"load": name, "per second": rate, "p50 ms": None, "p99 ms": None}
    if replies:
        ordered = sorted(r.seconds for r in replies)
        row["p50 ms"] = 1000 * ordered[len(ordered) // 2]
        row["p99 ms"] = 1000 * ordered[int(len(ordered) * 0.99)]
    row["failed"] = None if replies is None else str(sum(r.status != 200 for r in replies))
    row["different"] = None
    if replies is not None and answers is not None:
        pairs = zip(replies, answers, strict=False)
        row["different"] = str(sum((r.text, r.task) != answer for r, answer in pairs))
    if replies is not None and row["failed"] != "0":
        row["statuses"] = str(dict(Counter(r.status for r in replies)))
    return row


@register_executor("instant")
class InstantExecutor:
    """Answers at once, and nothing: the rest of a request's time is spent on the way."""

    WRITTEN: ClassVar[bool] = False
    SAMPLES: ClassVar[frozenset[str]] = frozenset()
    running = waiting = 0

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self.tasks = tasks

    @staticmethod
    def require_servable(base: PretrainedConfig, images: int) -> None:
        """Every base is."""

    @classmethod
    async def load(cls, store: Store, config: ServeConfig) -> Self:
        return cls(store.tasks)

    async def submit(
        self, prompt: Prompt, task: int | None, sampling: Sampling, *, stream: bool
    ) -> AsyncGenerator[AnswerPart]:
        yield AnswerPart(tokens=1, task=BASE if task is None else task, finish="stop")

    async def locate(self, prompts: Sequence[Prompt]) -> list[Location]:
        return [Location(BASE, (), True)] * len(prompts)

    async def grow(self, store: Store) -> None:
        self.tasks = store.tasks

    def stuck(self) -> str | None:
        return None
