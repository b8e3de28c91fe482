"""A follower takes what is committed and whole, says why it doesn't take the rest, and goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.mini_store import copy_prefix, make_model, processor

from cmoe.serving.served_model import ServedModel
from cmoe.serving.store_follower import StoreFollower, readable
from cmoe.store.log import Store

NEVER_S = 3600.0  # between two looks: the tests ask for each


class Counting:
    """Grows by what the store has, and counts how often it is asked to."""

    def __init__(self) -> None:
        self.tasks: tuple[str, ...] = ()
        self.asked = 0

    async def grow(self, store: Store) -> None:
        self.asked += 1
        await asyncio.sleep(0.01)
        self.tasks = store.tasks


def test_a_damaged_primitive_and_those_behind_it_wait_until_it_is_whole(
    tmp_path: Path, stores: dict[str, Store]
) -> None:
    store = copy_prefix(stores["front"], tmp_path / "store", 3)
    (file,) = tmp_path.glob("store/001-*/experts.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    served = ServedModel(make_model(), processor())

    async def follow() -> None:
        follower = await StoreFollower.start(readable(store.url), served, NEVER_S)
        assert served.tasks == store.tasks[:1]
        assert str(file) in (follower.refused or "")
        assert str(follower.version) == f"1-{store.records()[0].digest[:12]}"
        file.write_bytes(whole)
        await follower.catch_up(1)
        assert served.tasks == store.tasks[:1], "it has as many as were asked for"
        await follower.catch_up(3)
        assert served.tasks == store.tasks
        assert follower.state() == {
            "tasks": store.tasks,
            "version": {
                "tasks": 3,
                "digest": store.records()[2].digest,
                "name": f"3-{store.records()[2].digest[:12]}",
            },
            "refused": None,
        }

    asyncio.run(follow())
    assert served.stuck() is None


def test_a_primitive_of_another_model_is_refused(stores: dict[str, Store]) -> None:
    served = ServedModel(make_model(), processor())
    served.model.append(stores["front"].read(0))
    served.model.tasks = ("VizWiz",)  # as the second one's

    async def follow() -> None:
        follower = await StoreFollower.start(stores["front"], served, NEVER_S)
        assert follower.refused == f"{stores['front'].url}: task 'VizWiz' is already learned"

    asyncio.run(follow())
    assert served.stuck() is None, "nothing was appended in part"


def test_a_model_with_half_a_primitive_has_to_be_started_anew(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = ServedModel(make_model(), processor())

    def fails(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(served.model, "append", fails)

    async def follow() -> None:
        follower = await StoreFollower.start(stores["front"], served, NEVER_S)
        assert "MemoryError('no room')" in (follower.refused or "")

    asyncio.run(follow())
    assert (served.stuck() or "").startswith("a primitive was taken in part: ")


def test_many_who_need_a_task_cause_one_look_and_one_who_gives_up_stops_none(
    stores: dict[str, Store],
) -> None:
    async def follow() -> None:
        grower = Counting()
        follower = StoreFollower(stores["front"], grower, NEVER_S)
        callers = [asyncio.create_task(follower.catch_up(2)) for _ in range(5)]
        await asyncio.sleep(0.001)
        callers[0].cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(r) for r in results] == [asyncio.CancelledError] + [type(None)] * 4
        assert grower.asked == 1

    asyncio.run(follow())


def test_a_follower_looks_by_itself(stores: dict[str, Store]) -> None:
    async def follow() -> None:
        grower = Counting()
        await StoreFollower.start(stores["front"], grower, 0.001)
        async with asyncio.timeout(30):
            while grower.asked < 3:
                await asyncio.sleep(0.001)

    asyncio.run(follow())
