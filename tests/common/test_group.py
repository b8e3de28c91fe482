"""Every item has one rank of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cmoe.common.group import Group
from cmoe.experiments.benchmarks.threads import Counts, Ledger, run_workers


def test_every_item_has_one_rank_and_its_own_number_for_any_workers() -> None:
    for count in range(41):
        items = [f"item {i}" for i in range(count)]
        for workers in range(1, 10):
            shares = [Group(rank, workers).share(items) for rank in range(workers)]
            merged = [pair for share in shares for pair in share]
            assert sorted(merged) == sorted(enumerate(items)), "each exactly once"
            assert all(share == sorted(share, key=lambda pair: pair[0]) for share in shares)
            sizes = [len(share) for share in shares]
            assert max(sizes) - min(sizes) <= 1

            equal = [Group(rank, workers).share(items, equal=True) for rank in range(workers)]
            assert len({len(share) for share in equal}) == 1, "as many passes on every rank"
            assert len(equal[0]) == max(sizes), "and none in vain"
            assert {pair for share in equal for pair in share} == set(enumerate(items))
            assert dict(pair for share in equal for pair in share) == dict(enumerate(items))
            for share, more in zip(shares, equal, strict=True):
                assert more[: len(share)] == share
                assert set(more[len(share) :]) <= {(count - 1, f"item {count - 1}")}


def said(workers: int, speak: Callable[[Group], Any]) -> tuple[list[Any], list[Counts]]:
    """What every rank gets, and what came to it for that."""
    found: dict[int, Any] = {}

    def work(group: Group, ledger: Ledger) -> None:
        found[group.rank] = speak(group)

    ledgers = [Ledger() for _ in range(workers)]
    run_workers(ledgers, work)
    return [found[rank] for rank in range(workers)], [each.counts[""] for each in ledgers]


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_words_of_a_group(workers: int) -> None:
    ranks = list(range(workers))
    assert said(workers, lambda group: group.gather(group.rank))[0] == [ranks] * workers
    assert said(workers, lambda group: group.to_first(group.rank))[0] == [ranks, *[[]] * ranks[-1]]
    assert said(workers, lambda group: group.from_first(lambda: group.rank))[0] == [0] * workers
    assert said(workers, lambda group: group.largest(group.rank))[0] == [ranks[-1]] * workers
    sums = said(workers, lambda group: int(group.total(torch.tensor(group.rank))))[0]
    assert sums == [sum(ranks)] * workers


@pytest.mark.parametrize(
    "speak", [Group.wait, lambda group: group.largest(7), lambda group: group.from_first(str)]
)
def test_what_comes_to_a_rank_does_not_depend_on_their_number(speak: Any) -> None:
    few, many = (said(workers, speak)[1][1] for workers in (2, 8))
    assert (many.collectives, many.received) == (few.collectives, few.received)


def test_what_is_for_rank_0_comes_to_it_alone() -> None:
    _, counts = said(8, lambda group: group.to_first(bytes(10_000)))
    assert counts[0].received > 7 * 10_000
    assert all(each.received < 100 for each in counts[1:])
