"""HTTP by hand: what no client library would send, and how a server takes it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """A server's answer; status 0 where it closed the connection without one."""

    status: int
    body: Any


@contextmanager
def connection(url: str, timeout: float = 30.0) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout) as opened:
        yield opened


def head(path: str, *headers: str, host: str | None = "localhost") -> bytes:
    """The lines before a body."""
    method = "POST" if any("ength" in h or "ncoding" in h for h in headers) else "GET"
    lines = [f"{method} {path} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def posted(size: int, path: str = "/v1/chat/completions") -> bytes:
    """The lines before a JSON body of so many bytes."""
    return head(path, "Content-Type: application/json", f"Content-Length: {size}")


def answer(opened: socket.socket) -> Answer:
    """What comes back, up to the body's end."""
    data = b""
    with suppress(ConnectionError):
        while b"\r\n\r\n" not in data and (part := opened.recv(65_536)):
            data += part
        lines, _, body = data.partition(b"\r\n\r\n")
        if not lines:
            return Answer(0, None)
        named = dict(line.lower().split(b": ", 1) for line in lines.split(b"\r\n")[1:])
        size = int(named.get(b"content-length", b"0"))
        while len(body) < size and (part := opened.recv(65_536)):
            body += part
        return Answer(int(lines.split()[1]), json.loads(body[:size] or b"null"))
    return Answer(0, None)


def asked(url: str, *data: bytes, pause_s: float = 0.0) -> Answer:
    """The answer to bytes, with pauses between."""
    with connection(url) as opened:
        with suppress(ConnectionError):
            for part in data:
                opened.sendall(part)
                time.sleep(pause_s)
        return answer(opened)
