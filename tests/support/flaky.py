"""A storage that fails now and then: a proxy before a real S3 server."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from urllib.parse import urlsplit

FAULTS = ("refused", "unavailable", "slow", "truncated", "lost")
DELAY_S = 3.0


class Flaky(ThreadingHTTPServer):
    """Passes requests on, and lets some fail.

    Args:
        endpoint: Of the server behind it.
        share: Of the requests that fail.
        seed: Of which.

    Attributes:
        faults: How many there were of each kind.
        requests: How many came, by method.
        denied: Whether all writing is refused, as with a wrong key.
        unconditional: Whether writes ignore `If-None-Match`, as some servers do.
        read: How often each object was read, by its path.
        altered: How many answers with an object still come with another byte.
        answer: What every request gets, an HTTP status and a code of S3; None passes it on.
    """

    daemon_threads = True

    def __init__(self, endpoint: str, share: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.share = urlsplit(endpoint).netloc, share
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.altered = 0
        self.denied = self.unconditional = False
        self.answer: tuple[int, str] | None = None
        self._random, self._lock = Random(seed), threading.Lock()
        self._away_until = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def go_away(self, seconds: float) -> None:
        """Break every connection for a time."""
        self._away_until = time.monotonic() + seconds

    def fault(self, method: str) -> str | None:
        """What befalls a request."""
        with self._lock:
            self.requests[method] += 1
            found = None
            if time.monotonic() < self._away_until:
                found = "away"
            elif self.denied and method in ("PUT", "POST"):
                found = "denied"
            elif self._random.random() < self.share:
                found = self._random.choice(FAULTS)
            if found is not None:
                self.faults[found] += 1
            return found

    def object(self, path: str, content: bytes) -> bytes:
        """What is answered as an object's content."""
        with self._lock:
            self.read[path] += 1
            if not self.altered or not content:
                return content
            self.altered -= 1
            return bytes([content[0] ^ 1]) + content[1:]

    def handle_error(self, *_: object) -> None:
        """Clients that have gone are no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Flaky
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault(self.command)
        if fault in ("refused", "away"):
            self.close_connection = True
            return
        if fault in ("unavailable", "denied"):
            status, code = (503, "SlowDown") if fault == "unavailable" else (403, "AccessDenied")
            self._refuse(status, code)
            return
        if self.server.answer is not None:
            self._refuse(*self.server.answer)
            return
        if self.server.unconditional:
            del self.headers["If-None-Match"]
        if fault == "slow":
            time.sleep(DELAY_S)
        behind = http.client.HTTPConnection(self.server.behind, timeout=60)
        behind.request(self.command, self.path, body, dict(self.headers))
        reply = behind.getresponse()
        content = reply.read()
        behind.close()
        if fault == "lost":  # it was done, and nobody is told
            self.close_connection = True
            return
        length = int(reply.headers.get("Content-Length", len(content)))
        if self.command == "GET" and "?" not in self.path:
            content = self.server.object(self.path, content)
        if fault == "truncated" and content:
            content = content[: len(content) // 2]
            self.close_connection = True
        kept = [
            (name, value)
            for name, value in reply.getheaders()
            if name.lower() not in ("content-length", "transfer-encoding", "connection")
        ]
        self._answer(reply.status, kept, content, length)

    def _refuse(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode()
        text = b"" if self.command == "HEAD" else text
        self._answer(status, [("Content-Type", "application/xml")], text, len(text))

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, length: int
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def flaky(endpoint: str, *, share: float = 0.0, seed: int = 0) -> Iterator[Flaky]:
    """A proxy before a server, for as long as the body runs."""
    proxy = Flaky(endpoint, share, seed)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
