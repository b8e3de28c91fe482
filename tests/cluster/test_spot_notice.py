"""A provider's notice reaches Ray, from a metadata service as AWS documents it (IMDSv2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray
from support.jobs import REPOSITORY, until

SCRIPT = REPOSITORY / "ray_jobs" / "spot_notice.py"
TOKEN = "a-session"


class _Metadata(BaseHTTPRequestHandler):
    """Asks for a session, and has a notice once the server is told so."""

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token"
        known = known and self.headers["X-aws-ec2-metadata-token-ttl-seconds"] is not None
        self._answer(200 if known else 400, TOKEN)

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != TOKEN:
            self._answer(401, "")
        elif self.path != "/latest/meta-data/spot/instance-action" or not self.server.notice:  # type: ignore[attr-defined]
            self.server.asked += 1  # type: ignore[attr-defined]
            self._answer(404, "")
        else:
            self._answer(200, self.server.notice)  # type: ignore[attr-defined]

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def metadata() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Metadata)
    server.notice, server.asked = "", 0  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_notice_drains_the_machines_node_in_ray(metadata: ThreadingHTTPServer) -> None:
    from ray._private.state import state

    ray.init(address="local", num_cpus=1, include_dashboard=False)
    try:
        held = ray.remote(lambda: time.sleep(120)).remote()  # a node without work leaves at once
        environment = {
            **os.environ,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{metadata.server_address[1]}",
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        }
        watching = subprocess.Popen([sys.executable, SCRIPT], env=environment)
        until(lambda: metadata.asked > 0, minutes=1)  # type: ignore[attr-defined]
        assert not state.get_draining_nodes()
        end = datetime.now(UTC) + timedelta(seconds=60)
        notice = {"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
        metadata.notice = json.dumps(notice)  # type: ignore[attr-defined]
        until(state.get_draining_nodes, minutes=1)
        ((node, deadline),) = state.get_draining_nodes().items()
        assert node == ray.get_runtime_context().get_node_id()
        assert abs(deadline / 1000 - end.timestamp()) < 15
        assert watching.poll() is None, "it stays while there is time: a pod would go with it"
        watching.kill()
        watching.wait()
        ray.cancel(held, force=True)
    finally:
        ray.shutdown()
