"""A Ceph of one machine with its S3 gateway: another S3 than moto, one that people run.

One monitor, one store of objects in memory, one gateway; an ordinary user can start them. They
come with Debian's packages, see `make test-s3`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from support.ports import free_port

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd")
PROGRAMS = (*PACKAGES, "radosgw-admin", "ceph", "monmaptool")
START_S = 120
SETTINGS = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}]
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
keyring = /dev/null
run dir = {folder}
admin socket =
pid file = {folder}/$name.pid
log file = {folder}/$name.log
mon data = {folder}/mon
mon data avail crit = 1
mon allow pool size one = true
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw thread pool size = 32
"""


@dataclass(frozen=True)
class Ceph:
    """A running one.

    Attributes:
        endpoint: Of its S3 gateway.
        settings: Its file of settings.
    """

    endpoint: str
    settings: Path

    def admin(self, *words: str) -> Any:
        """What `radosgw-admin` answers."""
        command = ["radosgw-admin", "-c", str(self.settings), *words]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return json.loads(said) if said.strip().startswith(("{", "[")) else said

    def new_user(self) -> tuple[str, str]:
        """A user of their own; key and secret."""
        name = f"user-{uuid4().hex}"
        self.admin("user", "create", f"--uid={name}", "--display-name=a user")
        return self.new_key(name)

    def new_key(self, user: str) -> tuple[str, str]:
        """Another key of a user, and its secret."""
        key, secret = uuid4().hex[:20].upper(), uuid4().hex
        given = f"--access-key={key}", f"--secret={secret}"
        self.admin("key", "create", f"--uid={user}", *given)
        return key, secret

    def options(self, key: str, secret: str) -> dict[str, Any]:
        """s3fs's, to reach it."""
        region = {"region_name": "us-east-1"}
        return {
            "key": key,
            "secret": secret,
            "endpoint_url": self.endpoint,
            "client_kwargs": region,
        }


def missing() -> list[str]:
    """Programs that aren't installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def running_ceph(folder: Path) -> Iterator[Ceph]:
    """Start one in an empty folder, for as long as the body runs."""
    fsid, port, gateway = str(uuid4()), free_port(), free_port()
    settings, osd = folder / "ceph.conf", str(uuid4())
    settings.write_text(SETTINGS.format(folder=folder, fsid=fsid, port=port, gateway=gateway))
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    own = "-c", str(settings)
    monmap = str(folder / "monmap")
    address = f"[v2:127.0.0.1:{port}]"

    def run(*command: str) -> None:
        subprocess.run(
            command, check=True, timeout=START_S, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    with ExitStack() as stack:

        def start(*command: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            process = subprocess.Popen([*command, *own, "-f"], stdout=log, stderr=log)
            stack.callback(_end, process)
            return process

        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        run("ceph-mon", *own, "--mkfs", "-i", "a", "--monmap", monmap)
        start("ceph-mon", "-i", "a")
        run("ceph", *own, "--connect-timeout", str(START_S), "osd", "new", osd)
        run("ceph-osd", *own, "--mkfs", "-i", "0", "--osd-uuid", osd)
        start("ceph-osd", "-i", "0")
        endpoint = f"http://127.0.0.1:{gateway}"
        _wait_for(endpoint, start("radosgw", "-n", "client.gateway"))
        yield Ceph(endpoint, settings)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # nothing of it is to be kept
    process.wait()


def _wait_for(endpoint: str, gateway: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and gateway.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"radosgw didn't answer at {endpoint} (status {gateway.poll()})")
