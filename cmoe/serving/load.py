"""Load for a service, from processes of its own: what was asked, what was answered, and when."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from cmoe.data.samples import Sample


@dataclass(frozen=True)
class Reply:
    """What became of one request.

    Attributes:
        number: Of the request.
        status: HTTP's; 0 where the connection was lost.
        seconds: Until its last byte.
        text: The answer, or what was said instead.
        task: Located.
        begun: Seconds on the machine's clock.
    """

    number: int
    status: int
    seconds: float
    text: str
    task: str | None
    begun: float


def request_of(sample: Sample, model: str = "cmoe", tokens: int = 16) -> bytes:
    """A sample as the body of a chat completion."""
    content: list[dict[str, object]] = [{"type": "text", "text": sample.text}]
    if sample.image is not None:
        with sample.image.open("rb") as file:
            data = base64.b64encode(file.read()).decode()
        url = f"data:image/png;base64,{data}"  # the service looks into the file itself
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
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
) -> list[Reply]:
    """Ask a service, each client one request after the other.

    Args:
        url: Of the service.
        requests: Bodies.
        clients: That ask at the same time, over all processes.
        processes: That they are spread over.
        key: API key.
        timeout_s: Until a client gives up.

    Returns:
        Replies in the order of the requests.
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
        replies = [reply for share in shares for reply in share.result()]
    return sorted(replies, key=lambda reply: reply.number)


def _clients(
    url: str, requests: list[tuple[int, bytes]], clients: int, key: str | None, timeout_s: float
) -> list[Reply]:
    return asyncio.run(_ask_all(url, requests, clients, key, timeout_s))


async def _ask_all(
    url: str, requests: list[tuple[int, bytes]], clients: int, key: str | None, timeout_s: float
) -> list[Reply]:
    import aiohttp

    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    waiting, replies = iter(requests), []
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout
    ) as session:

        async def client() -> None:
            for number, body in waiting:
                start, begun = time.monotonic(), time.time()
                status, text, task = 0, "", None
                try:
                    async with session.post(f"{url}/v1/chat/completions", data=body) as response:
                        status = response.status
                        said = await response.json(content_type=None)
                        if status == 200:
                            text = said["choices"][0]["message"]["content"]
                            task = said["cmoe"]["task"]
                        else:
                            text = said["error"]["message"]
                except (
                    aiohttp.ClientError,
                    TimeoutError,
                    ValueError,
                    KeyError,
                    TypeError,
                ) as error:
                    text = text or repr(error)
                seconds = time.monotonic() - start
                replies.append(Reply(number, status, seconds, text, task, begun))

        await asyncio.gather(*(client() for _ in range(clients)))
    return replies
