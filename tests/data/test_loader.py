"""Batches made by other processes are those made here; the processes outlive a pass."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cmoe.common.errors import DataError
from cmoe.data.batches import Collator
from cmoe.data.coin import read_tasks
from cmoe.data.loader import Loader
from cmoe.data.samples import Sample
from cmoe.data.settings import DataConfig
from cmoe.mini.tasks import write_mini_coin
from cmoe.modeling.pretrained import load_processor
from cmoe.modeling.settings import MINI_BASE


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    root = tmp_path_factory.mktemp("coin")
    write_mini_coin(root, train=4, test=1)
    return [s for task in read_tasks(DataConfig(root=str(root)), seed=0) for s in task.train[:2]]


class Collating(Collator):
    """Adds the process that made a batch."""

    def training(self, samples: Any) -> dict[str, Any]:
        return super().training(samples) | {"process": torch.tensor(os.getpid())}


def test_other_processes_make_the_same_batches_and_name_what_they_cannot_read(
    samples: list[Sample], tmp_path: Path
) -> None:
    collator = Collating(load_processor(str(MINI_BASE)), 512, 16)
    bad = Sample("bad/9", "Why?", "no", (tmp_path / "gone.png",))
    everyone, numbers = [*samples, bad], [[3, 0], [8], [5, 7, 1], [len(samples)]]
    here, there = Loader(collator), Loader(collator, workers=1)
    processes = []
    for _ in range(2):  # what failed in one pass doesn't stay for the next
        passes = [each.batches("training", everyone, numbers) for each in (here, there)]
        for _ in range(3):
            mine, theirs = map(next, passes)
            assert mine.pop("process") == os.getpid()
            processes.append(int(theirs.pop("process")))
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
        for batches in passes:
            with pytest.raises(DataError, match="'bad/9'"):
                next(batches)
    assert len({*processes}) == 1
    assert processes[0] != os.getpid()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pass_begins_anew_where_the_one_before_was_left(
    samples: list[Sample], workers: int
) -> None:
    loader = Loader(Collator(load_processor(str(MINI_BASE)), 512, 16), workers)
    left = loader.batches("training", samples, [[0], [1], [2], [3]])
    next(left)
    prompts = [*loader.batches("prompts", samples, [[4], [5]])]
    assert len(prompts) == 2
    assert not any("labels" in batch for batch in prompts)
    with pytest.raises(RuntimeError, match="another pass"):
        next(left)
