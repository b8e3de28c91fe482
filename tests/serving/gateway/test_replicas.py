"""An answer is asked for again where its executor was lost or is behind, unless it has begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError

from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.replicas import BEHIND_TRIES, Answer, Replicas
from cmoe.serving.messages import BEHIND, AnswerPart, Reply
from cmoe.serving.settings import ServeConfig

GOOD = Reply(AnswerPart("yes", 1, finish="stop"), "1-a")
LATE = Reply(AnswerPart(failure=BEHIND), "0-a")
LOST = ActorDiedError()


class Executors:
    """Executors that reply as they are told, one after the other."""

    def __init__(self, *told: Reply | Exception | Sequence[Reply | Exception]) -> None:
        self.told, self.asked = list(told), 0

    def send(self) -> Any:
        said, self.asked = self.told[self.asked], self.asked + 1

        async def whole() -> tuple[Reply, ...]:
            return (_said(said),)

        async def parts() -> AsyncGenerator[Reply]:
            for each in said:  # type: ignore[union-attr]
                yield _said(each)

        return parts() if isinstance(said, list) else whole()


def _said(reply: Any) -> Reply:
    if isinstance(reply, Exception):
        raise reply
    assert isinstance(reply, Reply)
    return reply


async def whole(executors: Executors) -> tuple[Reply, ...]:
    return await Answer(executors.send)


async def parts(executors: Executors) -> list[Reply]:
    return [reply async for reply in Answer(executors.send)]


def test_another_executor_answers_for_one_that_was_lost_or_is_behind() -> None:
    for first in (LOST, LATE):
        executors = Executors(first, GOOD)
        assert asyncio.run(whole(executors)) == (GOOD,)
        streaming = Executors([first], [GOOD, GOOD])
        assert asyncio.run(parts(streaming)) == [GOOD, GOOD]
        assert executors.asked == streaming.asked == 2


def test_what_may_have_killed_two_executors_kills_no_third() -> None:
    executors = Executors(LOST, LOST, GOOD)
    with pytest.raises(RayActorError):
        asyncio.run(whole(executors))
    assert executors.asked == 2


def test_a_task_that_no_executor_has_yet_is_asked_for_later() -> None:
    executors = Executors(*[LATE] * BEHIND_TRIES)
    with pytest.raises(RequestError) as refused:
        asyncio.run(whole(executors))
    assert (refused.value.status, refused.value.code) == (503, "behind")
    assert refused.value.headers() == {"Retry-After": "1"}


def test_an_answer_that_has_begun_breaks_off() -> None:
    executors = Executors([GOOD, LOST], [GOOD])
    with pytest.raises(RayActorError):
        asyncio.run(parts(executors))
    assert executors.asked == 1


class Deployment:
    """A handle of a deployment whose replicas say of themselves what they are told."""

    def __init__(self, *states: dict[str, Any] | Exception) -> None:
        self.states = states

    def broadcast(self, _: str) -> Any:
        return self

    async def results_async(self, **_: Any) -> list[Any]:
        if not self.states:
            raise TimeoutError
        return [*self.states]


def state(tasks: int, refused: str | None = None, looked: float = 1.0) -> dict[str, Any]:
    return {"tasks": "abcdefgh"[:tasks], "refused": refused, "looked_s_ago": looked, "running": 1}


WHOLE = (state(8),)


@pytest.mark.parametrize(
    ("executors", "locators", "ready"),
    [
        (WHOLE, WHOLE, True),
        ((state(3, "damaged"),), WHOLE, False),
        ((state(8), state(3, "damaged")), WHOLE, False),
        (WHOLE, (state(3, "hangs"),), False),
        ((state(7),), WHOLE, True),  # takes the last one up just now
        ((state(8, "a ninth is damaged"),), WHOLE, True),
        ((), WHOLE, False),
        ((LOST,), WHOLE, False),
        ((LOST, state(8)), WHOLE, True),
    ],
)
def test_ready_is_who_can_answer_every_task_of_the_version_that_is_served(
    executors: Any, locators: Any, ready: bool
) -> None:
    handles: Any = Deployment(*executors), Deployment(*locators)

    async def asked() -> bool:
        return await Replicas(ServeConfig("store"), *handles).ready()

    assert asyncio.run(asked()) == ready


def test_a_deployment_is_as_its_worst_replica() -> None:
    handles: Any = Deployment(state(8), state(3, "damaged", 9.0), LOST), Deployment(state(8))

    async def asked() -> Any:
        return (await Replicas(ServeConfig("store"), *handles).states())["executor"]

    found = asyncio.run(asked())
    assert (len(found["tasks"]), found["refused"], found["looked_s_ago"]) == (3, "damaged", 9.0)
    assert (found["replicas"], found["running"]) == (2, 2)
