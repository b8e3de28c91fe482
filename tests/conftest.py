"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support.forking import forking
from support.marks import marks_of
from support.ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from support.ceph import Ceph
    from support.flaky import Flaky
    from support.hub import HubServer

    from cmoe.data.samples import Task

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# Tests run side by side: threads of torch's that wait for each other's cores would take a tiny
# model ten times its time. Processes that tests start inherit it; torch reads it when imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray would have each cluster that it starts here ask for a token, which it would write where the
# user has his own; tests that are about tokens say so.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

# Without a GPU Triton's interpreter runs kernels, if it is told before anybody imports Triton. vLLM
# has kernels of its own, which it replaces on a CPU.
if not os.environ.get("CMOE_TEST_DEVICE", "").startswith("cuda") and find_spec("vllm") is None:
    os.environ["TRITON_INTERPRET"] = "1"

# Tests leave nothing in the user's own cache of data sets; the library reads this when imported.
os.environ["HF_DATASETS_CACHE"] = str(Path(tempfile.gettempdir(), f"cmoe-tests-{os.getuid()}"))


FORKS = pytest.StashKey[ExitStack]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they start, and run the longest first: nothing is left for the end."""
    for item in items:
        if isinstance(item, pytest.Function):
            servers = {"s3_server", "ceph", "browser"} & {*item.fixturenames}
            for mark in marks_of(item.module) | ({"server"} if servers else set()):
                item.add_marker(mark)
    items.sort(key=lambda item: [item.get_closest_marker(m) is None for m in ("ray", "group")])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the workers that Ray starts be forks, from the first test on that starts Ray."""
    if item.get_closest_marker("ray") and FORKS not in item.config.stash:
        item.config.stash[FORKS] = ExitStack()
        os.environ |= item.config.stash[FORKS].enter_context(forking())


def pytest_unconfigure(config: pytest.Config) -> None:
    if FORKS in config.stash:
        config.stash[FORKS].close()


@dataclass(frozen=True)
class S3Server:
    """A running S3 server: its endpoint, and s3fs's options to reach it."""

    endpoint: str
    storage_options: dict[str, Any]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 wire for the session."""
    with running_s3() as server:
        yield server


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """moto's server in a process of its own."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(endpoint, server)
        options = {
            "key": "test",
            "secret": "test",
            "endpoint_url": endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }
        yield S3Server(endpoint, options)
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """An S3 that people run, beside moto's: a Ceph of this machine."""
    from support.ceph import PACKAGES, missing, running_ceph

    if missing():
        pytest.skip(f"no Ceph: Debian's packages {', '.join(PACKAGES)} aren't installed")
    with running_ceph(tmp_path_factory.mktemp("ceph")) as found:
        yield found


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket that is reached as a user's would be: by the environment alone."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"coin-{uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/prepared"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def wire(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    """What passes requests on to the bucket, counts them, and fails if it is told so."""
    import s3fs
    from support.flaky import flaky

    with flaky(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub of this test's own, for this process and those that it starts, with a token."""
    from huggingface_hub import constants
    from support.hub import TOKEN, running_hub

    with running_hub() as server:
        cache = str(tmp_path / "hub-cache")
        environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_CACHE": cache}
        for name, value in {**environment, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": ""}.items():
            monkeypatch.setenv(name, value)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, setting in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": cache,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, setting)
        yield server


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, ...]:
    """Three tasks of the mini CoIN."""
    from support.mini_store import make_data

    return make_data(tmp_path_factory.mktemp("data") / "coin")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser without a window."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def _wait_for(endpoint: str, server: subprocess.Popen[bytes], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"moto_server ended with status {server.returncode}")
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"moto_server did not answer at {endpoint} within {seconds} s")
