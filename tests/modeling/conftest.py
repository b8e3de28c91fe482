"""What tests of the network share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cmoe.experiments.benchmarks.growing import forced


@pytest.fixture(params=["concatenated", "grouped"])
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Experts computed all for all tokens, and each for its own."""
    with forced(request.param):
        yield
