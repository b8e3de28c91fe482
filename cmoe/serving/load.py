"""Load for a service: many clients in processes of their own, and what became of each request."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from cmoe.data.samples import Sample

if TYPE_CHECKING:
    from aiohttp import ClientSession


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        number: The request's place among all.
        status: HTTP status; 0 where the connection was lost.
        seconds: Time until the last byte of the response.
        text: The answer, or the error's message.
        task: The task that answered.
        begun: When the request was sent, in seconds of the machine's clock.
    """

    number: int
    status: int
    seconds: float
    text: str
    task: str | None
    begun: float


def request_of(sample: Sample, model: str = "cmoe", tokens: int = 16) -> bytes:
    """A sample as the body of a chat completion."""
    images = iter(sample.asked_about)
    content: list[dict[str, object]] = []
    for part in sample.question:
        if part is not None:
            content.append({"type": "text", "text": part})
            continue
        with next(images).open("rb") as file:
            data = base64.b64encode(file.read()).decode()
        url = f"data:image/png;base64,{data}"  # the service finds the format in the file itself
        content.append({"type": "image_url", "image_url": {"url": url}})
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": tokens}).encode()


def drive(
    url: str,
    requests: Sequence[bytes],
    *,
    clients: int,
    processes: int = 2,
    key: str | None = None,
    timeout_s: float = 120.0,
) -> list[Outcome]:
    """Send requests to a service, each client one after the other.

    Args:
        url: The service's URL.
        requests: The requests' bodies.
        clients: Number of clients that ask at the same time.
        processes: Number of processes that the clients are spread over.
        key: The API key.
        timeout_s: Seconds after which a client gives up.

    Returns:
        Outcomes in the order of the requests.
    """
    processes = min(processes, clients)
    numbered = list(enumerate(requests))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        shares = [
            pool.submit(
                _clients,
                url,
                numbered[part::processes],
                clients // processes + (part < clients % processes),
                key,
                timeout_s,
            )
            for part in range(processes)
        ]
        outcomes = [outcome for share in shares for outcome in share.result()]
    return sorted(outcomes, key=lambda outcome: outcome.number)


def _clients(
    url: str, requests: list[tuple[int, bytes]], clients: int, key: str | None, timeout_s: float
) -> list[Outcome]:
    return asyncio.run(_ask_all(url, requests, clients, key, timeout_s))


async def _ask_all(
    url: str, requests: list[tuple[int, bytes]], clients: int, key: str | None, timeout_s: float
) -> list[Outcome]:
    waiting, outcomes = iter(requests), []
    async with session(clients, key, timeout_s) as asking:

        async def client() -> None:
            for number, body in waiting:
                outcomes.append(await ask(asking, url, number, body))

        await asyncio.gather(*(client() for _ in range(clients)))
    return outcomes


async def steady(
    url: str,
    bodies: Sequence[bytes],
    per_second: float,
    outcomes: list[Outcome],
    ended: Callable[[], bool],
    timeout_s: float = 120.0,
) -> None:
    """Ask so many times a second, however long the answers take, and wait for them at the end.

    Args:
        url: The service's URL.
        bodies: The requests' bodies, over and over.
        per_second: Requests.
        outcomes: Of the requests, as they come.
        ended: Whether no more is to be asked.
        timeout_s: Seconds after which a client gives up.
    """
    async with session(0, None, timeout_s) as asking:

        async def one(number: int) -> None:
            outcomes.append(await ask(asking, url, number, bodies[number % len(bodies)]))

        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in count():
                if ended():
                    return
                group.create_task(one(number))
                due = start + (number + 1) / per_second
                await asyncio.sleep(max(0.0, due - time.monotonic()))


def session(connections: int, key: str | None, timeout_s: float) -> ClientSession:
    """What requests are sent with: at most so many connections; 0 sets no limit."""
    import aiohttp

    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(limit=connections)
    return aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout)


async def ask(session: ClientSession, url: str, number: int, body: bytes) -> Outcome:
    """Send one request, and wait for what becomes of it."""
    from aiohttp import ClientError

    start, begun = time.monotonic(), time.time()
    status, text, task = 0, "", None
    try:
        async with session.post(f"{url}/v1/chat/completions", data=body) as response:
            status = response.status
            found = await response.json(content_type=None)
        if status == 200:
            text = found["choices"][0]["message"]["content"]
            task = found["cmoe"]["task"]
        else:
            text = found["error"]["message"]
    except (ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        text = text or repr(error)
    return Outcome(number, status, time.monotonic() - start, text, task, begun)
