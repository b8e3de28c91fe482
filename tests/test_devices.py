"""The device that tests are told to compute on."""

from __future__ import annotations

import pytest
import torch
from support.devices import chosen


def test_the_cpu_and_what_is_there_is_taken() -> None:
    assert chosen("cpu") == torch.device("cpu")
    for i in range(torch.cuda.device_count()):
        assert chosen(f"cuda:{i}") == torch.device("cuda", i)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:99", "meta", "CPU"])
def test_another_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"CMOE_TEST_DEVICE is '{name}'; there is cpu"):
        chosen(name)
