"""Time left, on simulated runs whose clock and costs are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from cmoe.modeling.routers import BASE
from cmoe.run.remaining_time import LEAST_STEPS, Remaining, Sizes

Event = Mapping[str, Any]
SIZES = Sizes(steps=[40, 80, 20, 60], samples=[400, 800, 200, 600], tests=[50, 100, 30, 20])
LEARNING = ("probe", "train", "features", "locator")


@dataclass(frozen=True)
class World:
    """A run of which every step takes what it takes here.

    Attributes:
        step: Seconds of a step of training or probing.
        answer: Of a test sample.
        setup: Before a phase's first step.
        every: Steps from one event of a training to the next.
    """

    step: float = 2.0
    answer: float = 0.5
    setup: float = 10.0
    every: int = 10
    sizes: Sizes = SIZES
    clock: list[float] = field(default_factory=lambda: [1000.0])

    def evaluate(self, stage: int, tests: int | None = None) -> Iterator[Event]:
        tests = int(self.sizes.work("evaluate", stage)) if tests is None else tests
        place = {"index": stage, "phase": "features", "of": "x"}
        yield self.event(place, 0.1, 1, 1)
        batches = -(-tests // 10)
        for batch in range(batches):
            place = {"index": stage, "phase": "predict"}
            yield self.event(place, 10 * self.answer, batch + 1, batches)
        if stage != BASE:
            yield self.event({"index": stage, "phase": "stage"}, 1.0)

    def learn(
        self, index: int, start: int = 0, phases: tuple[str, ...] = LEARNING
    ) -> Iterator[Event]:
        for phase in phases:
            self.clock[0] += self.setup
            if phase == "locator":
                yield self.event({"index": index, "phase": phase}, 0.0, 0, 1)
                yield self.event({"index": index, "phase": phase}, 5.0, 1, 1)
                continue
            steps = {"probe": 8, "train": self.sizes.steps[index]}.get(phase, 4)
            for step in range(start + 1, steps + 1):
                self.clock[0] += self.step
                if step % self.every == 0 or step == steps or phase == "features":
                    place = {"index": index, "phase": phase, "from": start}
                    yield self.event(place, 0.0, step, steps)
            start = 0

    def event(self, place: Event, passes: float, step: int | None = None, steps: int = 0) -> Event:
        self.clock[0] += passes
        counted = {} if step is None else {"step": step, "steps": steps}
        return {**place, **counted, "time": self.clock[0]}

    def stream(self) -> Iterator[Event]:
        yield from self.evaluate(BASE)
        for index in range(len(self.sizes.tests)):
            yield from self.learn(index)
            yield from self.evaluate(index)


Told = list[tuple[Event, float | None, float | None]]


def follow(events: Iterator[Event], remaining: Remaining) -> Told:
    """Every event, with what is then said to be left of the phase and of the run."""
    told = []
    for event in events:
        remaining.event(event)
        told.append((event, remaining.phase(), remaining.run()))
    return told


def test_the_estimate_of_a_steady_run_is_right() -> None:
    world = World()
    told = follow(world.stream(), Remaining(SIZES, {}))
    end = world.clock[0]
    known = [(event, run) for event, _, run in told if run is not None]
    assert known[0][0]["index"] == 0
    for event, run in known:
        assert run == pytest.approx(end - event["time"], rel=0.25, abs=8)


def test_nothing_is_said_before_a_whole_task_is_known() -> None:
    told = follow(World().stream(), Remaining(SIZES, {}))
    for event, _, run in told:
        learning = event["index"] == 0 and event["phase"] in LEARNING and "of" not in event
        if event["index"] == BASE or learning:
            assert run is None, event


def test_it_is_never_nothing_while_work_remains() -> None:
    """Also on the last task, and where a task takes longer than those before it."""
    world = World()
    remaining = Remaining(SIZES, {})
    events = [*world.evaluate(BASE), *world.learn(0), *world.evaluate(0), *world.learn(1)]
    events += [*world.evaluate(1), *world.learn(2), *world.evaluate(2)]
    slow = replace(world, step=9.0, answer=3.0)
    follow(iter(events), remaining)
    told = follow(iter([*slow.learn(3), *slow.evaluate(3)]), remaining)
    for event, phase, run in told[:-2]:
        assert run is not None
        assert run > 0, event
        if event.get("step", 0) < event.get("steps", 0):
            assert phase is None or phase > 0, event


def test_a_resumed_run_measures_itself_and_no_earlier_sessions_stamps() -> None:
    """What was there is told again, hours later, in no time at all."""
    notes = {
        BASE: {"predict": 101.0},
        0: {"probe": 18.0, "train": 85.0, "features": 10.0, "locator": 6.0, "predict": 77.0},
    }
    world = World(clock=[90_000.0])
    remaining = Remaining(SIZES, notes)
    recalled = world.event({"index": 0, "phase": "stage"}, 0.0)
    events = [recalled, *world.learn(1, start=50, phases=LEARNING[1:]), *world.evaluate(1)]
    events += [*world.learn(2), *world.evaluate(2), *world.learn(3), *world.evaluate(3)]
    end = world.clock[0]
    for event, _, run in follow(iter(events), remaining):
        if event["phase"] != "stage":
            assert run == pytest.approx(end - event["time"], rel=0.35, abs=30), event


def test_without_notes_a_resumed_task_tells_nothing_of_later_ones() -> None:
    """Its probes were before: what a whole task takes isn't known yet."""
    world = World()
    remaining = Remaining(SIZES, {})
    told = follow(iter([*world.learn(1, start=50, phases=LEARNING[1:])]), remaining)
    told += follow(world.evaluate(1), remaining)
    assert {run for _, _, run in told} == {None}
    assert any(phase is not None for _, phase, _ in told)


def test_steps_done_before_a_restart_are_not_taken_for_fast_ones() -> None:
    world = World()
    remaining = Remaining(SIZES, {})
    follow(iter([*world.evaluate(BASE), *world.learn(0), *world.evaluate(0)]), remaining)
    follow(iter([*world.learn(1, phases=LEARNING[:1])]), remaining)
    half = [e for e in world.learn(1, phases=("train",)) if e["step"] <= 40]
    follow(iter(half), remaining)
    restart = world.event({"phase": "restart"}, 600.0)
    told = follow(iter([restart, *world.learn(1, start=40, phases=LEARNING[1:])]), remaining)
    trained = [(e, phase) for e, phase, _ in told if e["phase"] == "train" and phase]
    assert trained
    for event, phase in trained:
        assert phase == pytest.approx(2.0 * (80 - event["step"]), rel=0.2)
    told += follow(iter([*world.evaluate(1), *world.learn(2)]), remaining)
    rest = [e for w in (world,) for e in (*w.evaluate(2), *w.learn(3), *w.evaluate(3))]
    last, run = told[-1][0], told[-1][2]
    assert run == pytest.approx(rest[-1]["time"] - last["time"], rel=0.3)


def test_a_notice_is_no_phase() -> None:
    world, remaining = World(), Remaining(SIZES, {})
    follow(iter([*world.evaluate(BASE), *world.learn(0), *world.evaluate(0)]), remaining)
    event = next(world.learn(1, phases=("train",)))
    remaining.event(event)
    before = remaining.run()
    remaining.event({**event, "phase": "notice"})
    assert remaining.run() == before


def test_one_step_gives_no_pace() -> None:
    """The first one compiles and warms up: a thousand times as slow."""
    remaining = Remaining(SIZES, {})
    place = {"index": 0, "phase": "train", "steps": 40}
    for step, time in enumerate([0.0, 1000.0, 1001.0, 1002.0], 1):
        remaining.event({**place, "step": step, "time": time})
        if step <= LEAST_STEPS:
            assert remaining.phase() is None
            assert remaining.pace is None


def test_evaluation_grows_with_the_tasks_seen() -> None:
    """A method that answers all tests anew after every task."""
    world = World(setup=0.1, step=0.01)
    told = follow(world.stream(), Remaining(SIZES, {}))
    after_first = next(run for e, _, run in told if (e["index"], e["phase"]) == (1, "probe"))
    later = sum(SIZES.work("evaluate", stage) for stage in (1, 2, 3)) * world.answer
    assert after_first == pytest.approx(later, rel=0.15)


def test_what_learns_all_tasks_at_once_has_only_evaluation_left() -> None:
    joint = Sizes(steps=[200, 0, 0, 0], samples=[2000, 0, 0, 0], tests=SIZES.tests)
    world = World(sizes=joint)
    remaining = Remaining(joint, {})
    events = [*world.evaluate(BASE), *world.learn(0, phases=("train",)), *world.evaluate(0)]
    follow(iter(events), remaining)
    first = next(world.evaluate(1))
    remaining.event(first)
    later = sum(joint.work("evaluate", stage) for stage in (1, 2, 3)) * world.answer
    assert remaining.run() == pytest.approx(later, rel=0.2)
