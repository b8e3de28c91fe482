"""An answer is asked for again where its executor was lost or is behind, and never once it began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError

from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.replicas import BEHIND_TRIES, Answer
from cmoe.serving.messages import BEHIND, AnswerPart, Reply

GOOD = Reply(AnswerPart("yes", 1, finish="stop"), "1-a")
LATE = Reply(AnswerPart(failure=BEHIND), "0-a")
LOST = ActorDiedError()


class Executors:
    """Executors that reply as they are told, one after the other."""

    def __init__(self, *told: Reply | Exception | Sequence[Reply | Exception]) -> None:
        self.told, self.asked = list(told), 0

    def send(self) -> Any:
        said, self.asked = self.told[self.asked], self.asked + 1

        async def whole() -> Reply:
            return _said(said)

        async def parts() -> AsyncGenerator[Reply]:
            for each in said:  # type: ignore[union-attr]
                yield _said(each)

        return parts() if isinstance(said, list) else whole()


def _said(reply: Any) -> Reply:
    if isinstance(reply, Exception):
        raise reply
    assert isinstance(reply, Reply)
    return reply


async def whole(executors: Executors) -> Reply:
    return await Answer(executors.send)


async def parts(executors: Executors) -> list[Reply]:
    return [reply async for reply in Answer(executors.send)]


def test_another_executor_answers_for_one_that_was_lost_or_is_behind() -> None:
    for first in (LOST, LATE):
        executors = Executors(first, GOOD)
        assert asyncio.run(whole(executors)) == GOOD
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
