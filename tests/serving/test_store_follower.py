"""A follower takes what is committed and whole, says why it doesn't take the rest, and goes on."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from support.mini_store import LOCATOR, copy_prefix, make_model, processor

from cmoe.common.storage import StorageError
from cmoe.data.batches import ChatTurn, Collator
from cmoe.modeling.base import find_layers
from cmoe.serving.prompts import to_arrays
from cmoe.serving.served_model import ServedLocator, ServedModel
from cmoe.serving.settings import ServeConfig
from cmoe.serving.store_follower import StoreFollower, open_store
from cmoe.store.log import Store

NEVER_S = 3600.0  # between two looks: the tests ask for each
LOOK_S = 60.0


class Counting:
    """Grows by what the store has, and counts how often it is asked to."""

    def __init__(self) -> None:
        self.tasks: tuple[str, ...] = ()
        self.asked = 0

    async def grow(self, store: Store) -> None:
        self.asked += 1
        await asyncio.sleep(0.01)
        self.tasks = store.tasks


def follower_of(store: Store, grower: Any, look_s: float = LOOK_S) -> StoreFollower:
    return StoreFollower(store, grower, NEVER_S, look_s)


def config_of(store: Store, poll_s: float = NEVER_S) -> ServeConfig:
    return ServeConfig(store.url, poll_s=poll_s)


def test_a_damaged_primitive_and_those_behind_it_wait_until_it_is_whole(
    tmp_path: Path, stores: dict[str, Store]
) -> None:
    store = copy_prefix(stores["front"], tmp_path / "store", 3)
    (file,) = tmp_path.glob("store/001-*/experts.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    served = ServedModel(make_model(), processor())

    async def follow() -> None:
        follower = follower_of(store, served)
        await follower.catch_up()
        assert served.tasks == store.tasks[:1]
        assert str(file) in (follower.refused or "")
        assert str(follower.version) == f"1-{store.records()[0].digest[:12]}"
        file.write_bytes(whole)
        await follower.catch_up(1)
        assert served.tasks == store.tasks[:1], "it has as many as were asked for"
        await follower.catch_up(3)
        assert served.tasks == store.tasks
        state = follower.state()
        assert 0 <= state.pop("looked_s_ago") < LOOK_S
        assert state == {
            "tasks": store.tasks,
            "instructions": [record.instructions for record in store.records()],
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
        follower = follower_of(stores["front"], served)
        await follower.catch_up()
        assert follower.refused == f"{stores['front'].url}: task 'VizWiz' is already learned"

    asyncio.run(follow())
    assert served.stuck() is None, "nothing was appended in part"


DAMAGE = ("missing", "truncated", "oversized", "nested")


@pytest.mark.parametrize("damage", DAMAGE)
def test_nothing_starts_with_a_part_of_a_store(
    tmp_path: Path, stores: dict[str, Store], damage: str
) -> None:
    """As while it is being copied, or with a file that would fill the memory or the stack."""
    store = copy_prefix(stores["front"], tmp_path / "store", 3)
    (tensors,) = tmp_path.glob("store/001-*/experts.safetensors")
    record = tmp_path / "store" / "002.json"
    file = tensors if damage in ("missing", "truncated") else record
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        os.truncate(file, 100)
    elif damage == "oversized":
        os.truncate(file, 2**40)
    else:
        file.write_text('{"a":' * 200_000)

    async def start() -> None:
        opened = await open_store(config_of(store))
        await StoreFollower.start(opened, ServedModel(make_model(), processor()), config_of(store))

    with pytest.raises(StorageError, match=re.escape(str(file))):
        asyncio.run(start())


@pytest.mark.parametrize("kind", [MemoryError, RecursionError, OSError, KeyError, SystemExit])
def test_whatever_a_look_raises_is_shown_and_the_next_one_may_succeed(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    store, served = stores["front"], ServedModel(make_model(), processor())

    def fails(*_: Any) -> None:
        raise kind("no more")

    async def follow() -> None:
        follower = follower_of(store, served)
        for step in ("read", "refresh"):
            with monkeypatch.context() as broken:
                broken.setattr(Store, step, fails)
                await follower.catch_up()
            assert kind.__name__ in (follower.refused or "")
            assert store.url in (follower.refused or "")
        await follower.catch_up()
        assert (follower.refused, served.tasks) == (None, store.tasks)

    asyncio.run(follow())


def test_a_look_that_hangs_holds_nobody_up_and_is_shown_until_it_ends(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, begun = threading.Event(), []

    def hangs(_: Store) -> None:
        begun.append(1)
        go_on.wait()

    async def follow() -> None:
        grower = Counting()
        follower = follower_of(stores["front"], grower, look_s=0.2)
        with monkeypatch.context() as stuck:
            stuck.setattr(Store, "refresh", hangs)
            for _ in range(3):
                await follower.catch_up(3)
        assert len(begun) == 1, "another look would hang, too"
        assert "hasn't ended in 0.2 s" in (follower.refused or "")
        first = follower.state()["looked_s_ago"]
        await asyncio.sleep(0.2)
        assert follower.state()["looked_s_ago"] > first >= 0.2
        go_on.set()
        async with asyncio.timeout(30):
            while follower.refused is not None:
                await asyncio.sleep(0.01)
        assert grower.tasks == stores["front"].tasks

    asyncio.run(follow())


def test_a_model_with_half_a_primitive_has_to_be_started_anew(
    stores: dict[str, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = ServedModel(make_model(), processor())

    def fails(*_: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(served.model, "append", fails)

    async def follow() -> None:
        follower = follower_of(stores["front"], served)
        await follower.catch_up()
        assert "MemoryError('no room')" in (follower.refused or "")

    asyncio.run(follow())
    assert (served.stuck() or "").startswith("a primitive was taken in part: ")


def test_many_who_need_a_task_cause_one_look_and_one_who_gives_up_stops_none(
    stores: dict[str, Store],
) -> None:
    async def follow() -> None:
        grower = Counting()
        follower = follower_of(stores["front"], grower)
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
        config = config_of(stores["front"], poll_s=0.001)
        await StoreFollower.start(stores["front"], grower, config)
        async with asyncio.timeout(30):
            while grower.asked < 3:
                await asyncio.sleep(0.001)

    asyncio.run(follow())


def test_a_locator_has_the_layers_that_it_runs_and_locates_as_the_whole_model(
    stores: dict[str, Store],
) -> None:
    store, collator = stores["front"], Collator(processor(), 512, 1)
    locator = asyncio.run(ServedLocator.load(store, config_of(store)))
    served = asyncio.run(ServedModel.load(store, config_of(store)))
    asyncio.run(locator.grow(store))
    asyncio.run(served.grow(store))
    texts = ("Where is the red ring?", "Answer yes or no.", "A")
    prompts = [to_arrays(collator.conversation([ChatTurn("user", (t,))])) for t in texts]
    assert locator.locate(prompts) == served.locate(prompts)
    assert locator.tasks == store.tasks
    assert len(find_layers(locator.model.base)) == LOCATOR.layer + 1
