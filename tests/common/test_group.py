"""Every item has one rank of a group."""

from __future__ import annotations

from cmoe.common.group import Group


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
