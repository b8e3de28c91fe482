"""A notice that a machine will be taken away: all workers keep the same step, and ask nobody."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmoe.common.group import Group
from cmoe.data.loader import Loader
from cmoe.data.samples import Sample
from cmoe.data.session import Session
from cmoe.experiments.benchmarks.idle import IdleCollator, IdleEngine
from cmoe.experiments.benchmarks.threads import Ledger, run_workers
from cmoe.training.settings import TrainingConfig
from cmoe.training.trainer import LEAVING_EVERY, TaskTrainer

STEPS = 4 * LEAVING_EVERY
SAMPLES = [Sample(str(n), "", "") for n in range(8)]


class IdleTrainer(TaskTrainer):
    engine: Callable[..., Any] = IdleEngine


class Noticing:
    """A link that hears of a machine at one of its looks, and keeps nothing."""

    def __init__(self, heard_at: int | None) -> None:
        self.heard_at, self.looks = heard_at, 0
        self.saves: list[bool] = []
        self.notices: list[int] = []

    def emit(self, event: Mapping[str, Any]) -> None:
        if event["phase"] == "notice":
            self.notices.append(event["step"])

    def reached(self, place: Mapping[str, Any]) -> None:
        pass

    def save(self, folder: Path, *, wait: bool) -> None:
        self.saves.append(wait)
        shutil.rmtree(folder)

    def leaving(self) -> bool:
        self.looks += 1
        return self.looks == self.heard_at

    @contextmanager
    def saved(self, needed: Callable[[str], bool] | None = None) -> Iterator[None]:
        yield None

    def read_saved(self, name: str) -> None:
        return None


def trained(heard_at: Mapping[int, int | None]) -> list[tuple[Noticing, Ledger]]:
    """What the links of as many workers saw of a training, and their ledgers."""
    links = {rank: Noticing(look) for rank, look in heard_at.items()}
    ledgers = [Ledger() for _ in heard_at]

    def worker(group: Group, ledger: Ledger) -> None:
        collator: Any = IdleCollator()
        session = Session(group, collator, Loader(collator), 1)
        config = TrainingConfig(steps=STEPS, global_batch=2, micro_batch=1, log_every=STEPS)
        trainer = IdleTrainer(
            nn.Linear(1, 1), session, config, links[group.rank], seed=0, index=0, task="a"
        )
        trainer.fit("train", SAMPLES, lambda *_: torch.zeros(()))

    run_workers(ledgers, worker)
    return [(links[rank], ledger) for rank, ledger in enumerate(ledgers)]


def test_every_worker_keeps_the_very_step_at_which_rank_0_has_heard() -> None:
    for link, _ in trained({0: 2, 1: None}):
        assert link.notices == [2 * LEAVING_EVERY]
        assert link.saves == [True, False], "that one is waited for; the other is the last step's"


def test_who_hears_alone_changes_nothing() -> None:
    """Workers hear at different times; they mustn't part ways."""
    for link, _ in trained({0: None, 1: 1}):
        assert link.notices == []
        assert link.saves == [False]


def test_the_notice_needs_no_message_of_its_own() -> None:
    quiet, noticed = (trained({0: look, 1: None})[1][1].counts[""] for look in (None, 2))
    of_a_report = 1  # a checkpoint tells the losses first
    assert noticed.collectives == quiet.collectives + of_a_report
