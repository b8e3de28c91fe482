"""Stores on the mini base that the tests of serving share."""

from __future__ import annotations

import pytest
from support.mini_store import make_store

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
