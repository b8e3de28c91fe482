"""The places where a log may lie: a disk, a server for S3, and a hub."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem
from support.hub import HubServer
from support.logs import HubPlace, Place, two_in


@pytest.fixture
def local(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "store"), {})


@pytest.fixture
def s3(s3_server: Any) -> Place:
    bucket = f"b-{uuid.uuid4().hex}"
    S3FileSystem(**s3_server.storage_options).call_s3("create_bucket", Bucket=bucket)
    return Place(f"s3://{bucket}/runs/store", s3_server.storage_options)


@pytest.fixture
def on_hub(hub: HubServer) -> Place:
    return HubPlace("hf://me/store", {}, hub)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["local", "s3", "on_hub"])
def anywhere(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)


@pytest.fixture
def two(place: Place) -> Place:
    return two_in(place)


@pytest.fixture
def two_on_disk(local: Place) -> Place:
    return two_in(local)
