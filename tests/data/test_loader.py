"""Batches made ahead, by a thread or by other processes, are those made here, pass after pass."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support.jobs import until

from cmoe.common.errors import DataError
from cmoe.data.batches import Collator
from cmoe.data.coin import read_tasks
from cmoe.data.loader import AHEAD, Loader
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
    """Adds the process that made a batch, and notes in which thread it was, after how many."""

    made: ClassVar[list[str]] = []

    def training(self, samples: Any) -> dict[str, Any]:
        batch = super().training(samples) | {"process": torch.tensor(os.getpid())}
        self.made.append(threading.current_thread().name)
        return batch


def wait_for(made: int) -> None:
    until(lambda: len(Collating.made) >= made)


def make_collator() -> Collating:
    Collating.made.clear()
    return Collating(load_processor(str(MINI_BASE)), 512, 16)


def test_other_processes_make_the_same_batches_and_name_what_they_cannot_read(
    samples: list[Sample], tmp_path: Path
) -> None:
    collator = make_collator()
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
            with pytest.raises(DataError, match="'bad/9'") as error:
                next(batches)
            here_or_told = [*(str(entry.path) for entry in error.traceback), str(error.value)]
            assert any("batches.py" in each for each in here_or_told), "where it was raised"
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


def making() -> int:
    """Threads of loaders."""
    return sum(thread.name.startswith("loader") for thread in threading.enumerate())


def test_a_thread_makes_two_batches_ahead_and_ends_with_its_loader(samples: list[Sample]) -> None:
    gc.collect()  # of other tests' loaders
    before = making()
    loader = Loader(make_collator())
    assert making() == before
    batches = loader.batches("training", samples, [[n] for n in range(8)])
    for taken in range(1, 4):
        next(batches)
        wait_for(taken + AHEAD)
        assert len(Collating.made) == taken + AHEAD
    assert threading.current_thread().name not in Collating.made
    assert making() == before + 1
    del batches, loader
    gc.collect()
    until(lambda: making() == before)
    assert len(Collating.made) == 3 + AHEAD, "nothing more of a pass that was left"


def test_a_tokenizer_that_is_in_use_meanwhile_changes_nothing(samples: list[Sample]) -> None:
    """Padding and cutting are a tokenizer's own state, and it fails where two threads change it."""
    collator = make_collator()
    numbers = [[n % len(samples), (n + 1) % len(samples)] for n in range(40)]
    wanted = [collator.training([samples[n] for n in batch])["input_ids"] for batch in numbers]
    batches = Loader(collator).batches("training", samples, numbers)
    for ids, batch in zip(wanted, batches, strict=True):
        for width in (8, 16):
            texts = ["What is this?", "Why?"]
            collator.tokenizer(texts, padding="max_length", truncation=True, max_length=width)
        assert torch.equal(ids, batch["input_ids"])


def test_processes_begin_with_their_loader_and_one_that_is_killed_is_named(
    samples: list[Sample],
) -> None:
    before = {*multiprocessing.active_children()}
    loader = Loader(make_collator(), workers=2)
    begun = {*multiprocessing.active_children()} - before
    assert len(begun) == 2
    seen = set()
    for _ in range(2):
        every = loader.batches("training", samples, [[n] for n in range(4)])
        seen |= {int(batch["process"]) for batch in every}
    assert seen == {process.pid for process in begun}
    assert {*multiprocessing.active_children()} - before == begun, "none is begun for a pass"
    killed = min(seen)
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=rf"worker .*{killed}.* exited unexpectedly"):
        [*loader.batches("training", samples, [[n] for n in range(4)])]
