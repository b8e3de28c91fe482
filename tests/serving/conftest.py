"""Stores on the mini base that the tests of serving share, and a service that answers from one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.bad_requests import LIMITS
from support.mini_store import copy_prefix, make_store
from support.service import running_service, service_file
from support.service_client import KEY, ServiceClient, asking

from cmoe.data.samples import Sample, Task
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE
from cmoe.store.log import Store
from cmoe.store.model import load_model

PLACEMENTS = ("front", "inline")


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory, tasks: tuple[Task, ...]) -> dict[str, Store]:
    """A store of three tasks for each placement of the locator; nobody writes to them."""
    folder = tmp_path_factory.mktemp("stores")
    return {placement: make_store(folder / placement, tasks, placement) for placement in PLACEMENTS}


@pytest.fixture(scope="session", params=PLACEMENTS)
def model(request: pytest.FixtureRequest, stores: dict[str, Store]) -> GrowingVLM:
    """The model of a store with each placement of the locator."""
    return load_model(stores[request.param], load_base(MINI_BASE)[0])


@pytest.fixture(scope="session")
def samples(tasks: tuple[Task, ...]) -> list[Sample]:
    """Samples of all tasks, mixed."""
    return [task.test[i] for i in range(12) for task in tasks]


@pytest.fixture(scope="module")
def growing_store(tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Store]) -> Store:
    """Two of the three tasks; the third is committed while the service runs."""
    return copy_prefix(stores["front"], tmp_path_factory.mktemp("growing") / "store", 2)


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, growing_store: Store
) -> Iterator[ServiceClient]:
    """A service that takes two keys and has small limits; a module that uses it is marked `ray`."""
    folder = tmp_path_factory.mktemp("config")
    file = service_file(folder, poll_s=0.5, reject_unknown=False, limits=LIMITS)
    arguments = (growing_store.url, "--config", str(file))
    with running_service(*arguments, environment={"CMOE_API_KEYS": f"{KEY},another"}) as running:
        yield ServiceClient(running, KEY)


@pytest.fixture(scope="module")
def client(service: ServiceClient) -> openai.OpenAI:
    return service.openai_client()


@pytest.fixture(scope="module")
def answering(growing_store: Store) -> GrowingVLM:
    """The model of the first two tasks, in this process."""
    return load_model(growing_store, load_base(MINI_BASE)[0])


@pytest.fixture(scope="module")
def long(client: openai.OpenAI, tasks: tuple[Task, ...]) -> dict[str, Any]:
    """A request whose answer takes its time."""
    for sample in tasks[0].test:
        made: Any = {"model": "cmoe:ScienceQA", "messages": asking(sample), "max_tokens": 300}
        found = client.chat.completions.create(**made)
        if found.usage is not None and found.usage.completion_tokens == 300:
            return dict(made)
    raise AssertionError("no sample has a long answer")
