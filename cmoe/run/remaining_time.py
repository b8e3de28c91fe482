"""How long a run will still take, from what this run's own phases took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmoe.config.tree import RunConfig
from cmoe.data.samples import Task
from cmoe.folder import RunFolder
from cmoe.modeling.routers import BASE

EVALUATE = "evaluate"  # all of a stage's evaluation, among the phases
PREDICT = "predict"  # its answers, and all of it in a stage's notes
TRAIN, PROBE = "train", "probe"
LEAST_STEPS = 3  # that a pace is measured on, behind the first ones that warm up


@dataclass(frozen=True)
class Sizes:
    """What the work of each task's phases is proportional to.

    Attributes:
        steps: Optimizer steps of its training.
        samples: Its training samples.
        tests: Its test samples.
    """

    steps: Sequence[int]
    samples: Sequence[int]
    tests: Sequence[int]

    def work(self, phase: str, index: int) -> float:
        """How much a phase has to do for a task, in units of its own."""
        if phase == EVALUATE:
            return sum(self.tests if index == BASE else self.tests[: index + 2])
        if phase == TRAIN:
            return self.steps[index]
        return float(self.samples[index] > 0) if phase == PROBE else self.samples[index]


@dataclass
class _Section:
    """A phase under way, or all of an evaluation, from where it can be measured.

    Attributes:
        index: The task's place in the stream.
        phase: The phase.
        start: When it began, or was first heard of.
        first: The step then.
        whole: Whether its beginning was seen.
        end: When it was last heard of.
        step: The step then.
        steps: How many there are.
    """

    index: int
    phase: str
    start: float
    first: int
    whole: bool
    end: float = 0.0
    step: int = 0
    steps: int = 1


@dataclass
class _Pace:
    """What is counted at the moment, from the first step that was told."""

    key: tuple[Any, ...] = ()
    start: float = 0.0
    first: int = 0
    end: float = 0.0
    step: int = 0
    steps: int = 0

    @property
    def seconds(self) -> float | None:
        """Of a step; None until enough are measured."""
        done = self.step - self.first
        return (self.end - self.start) / done if done >= LEAST_STEPS else None

    @property
    def left(self) -> float | None:
        """Seconds until its last step."""
        return None if self.seconds is None else self.seconds * (self.steps - self.step)


class Remaining:
    """Follows a run's events and estimates what is left. It has no clock but theirs.

    Args:
        sizes: Of the stream's tasks.
        spent: Seconds by phase, of stages that this run did before; by index, -1 for the base.
    """

    def __init__(self, sizes: Sizes, spent: Mapping[int, Mapping[str, float]]) -> None:
        self._sizes = sizes
        self._measured: dict[str, dict[int, float]] = {EVALUATE: {}}
        self._section: _Section | None = None
        self._pace = _Pace()
        self._before: float | None = None  # when what came before this section ended
        self._done: set[str] = set()  # phases of the task under way
        self._from_start = False  # whether that task was seen from its beginning
        self._complete = any(index > BASE for index in spent)  # some task's phases are all known
        for index, seconds in spent.items():
            for name, passed in seconds.items():
                phase = EVALUATE if name == PREDICT else name
                self._measured.setdefault(phase, {})[index] = passed

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in progress, the end of a stage or a restart; a machine's notice is none of them."""
        if event["phase"] == "stage":
            self._end_stage(event["index"], event["time"])
        elif event["phase"] == "restart":
            self._section, self._pace, self._before = None, _Pace(), None
        elif event["phase"] != "notice":
            self._progress(event)

    # What is left

    @property
    def pace(self) -> float | None:
        """Seconds of a step of what is counted at the moment."""
        return self._pace.seconds

    def phase(self) -> float | None:
        """Seconds until the end of the phase under way; None where nothing is known."""
        section, left = self._section, self._pace.left
        if left is not None or section is None or section.phase == EVALUATE:
            return left
        whole = self._expected(section.phase, section.index)
        return None if whole is None else whole * (1 - section.step / section.steps)

    def run(self) -> float | None:
        """Seconds until the end of the run; None where nothing is known."""
        section = self._section
        if section is None or not self._complete or not self._measured[EVALUATE]:
            return None
        left = self._evaluation(section) if section.phase == EVALUATE else self._learning(section)
        if left is None:
            return None
        for index in range(section.index + 1, len(self._sizes.tests)):
            left += sum(self._expected(phase, index) or 0.0 for phase in self._measured)
        return left

    def _learning(self, section: _Section) -> float | None:
        """Of a task from within its learning: this phase, those behind it, its evaluation."""
        left = self.phase()
        if left is None:
            return None
        behind = self._measured.keys() - self._done - {section.phase}
        return left + sum(self._expected(phase, section.index) or 0.0 for phase in behind)

    def _evaluation(self, section: _Section) -> float:
        expected = self._expected(EVALUATE, section.index) or 0.0
        counted = self._pace.left
        if self._pace.key[1] == PREDICT and counted is not None:
            return counted
        return max(expected - (section.end - section.start), counted or 0.0)

    def _expected(self, phase: str, index: int) -> float | None:
        """Seconds of a phase of a task, as others took for their work."""
        measured = self._measured.get(phase, {})
        if any(known > BASE for known in measured):  # the base's answers are all new
            measured = {known: passed for known, passed in measured.items() if known > BASE}
        work = sum(self._sizes.work(phase, known) for known in measured)
        return sum(measured.values()) / work * self._sizes.work(phase, index) if work else None

    # What is measured

    def _progress(self, event: Mapping[str, Any]) -> None:
        index, now = event["index"], event["time"]
        evaluating = event["phase"] == PREDICT or "of" in event
        phase = EVALUATE if evaluating else event["phase"]
        if self._section is None or (self._section.index, self._section.phase) != (index, phase):
            self._section = self._begun(event, phase)
        section, pace = self._section, self._pace
        section.end, section.step, section.steps = now, event["step"], max(event["steps"], 1)
        key = index, event["phase"], event.get("of")
        if pace.key != key:
            pace = self._pace = _Pace(key, now, event["step"])
        pace.end, pace.step, pace.steps = now, event["step"], event["steps"]

    def _begun(self, event: Mapping[str, Any], phase: str) -> _Section:
        """The section that an event begins; the one before it has ended."""
        index, now, old = event["index"], event["time"], self._section
        if old is not None:
            self._end(old)
            if old.index != index:  # of the base, whose stage isn't told
                self._done, self._from_start = set(), True
        if phase == EVALUATE and index > BASE and self._from_start:
            self._complete = True
        if self._before is not None:
            return _Section(index, phase, self._before, event.get("from", 0), whole=True)
        # The first that is heard of. Of an evaluation it is the beginning if it looks at prompts.
        return _Section(index, phase, now, event["step"], whole="of" in event)

    def _end(self, section: _Section) -> None:
        passed, done = section.end - section.start, section.step - section.first
        self._done.add(section.phase)
        self._before = section.end
        if section.phase == EVALUATE:
            if section.whole:
                self._measured[EVALUATE][section.index] = passed
        elif done > 0:
            measured = self._measured.setdefault(section.phase, {})
            measured[section.index] = passed * section.steps / done

    def _end_stage(self, index: int, now: float) -> None:
        section = self._section
        if section is not None:
            if section.phase == EVALUATE:
                section.end = now
            self._end(section)
            self._complete = self._complete or self._from_start
        self._from_start = section is not None  # a stage that was there before says nothing
        self._section, self._pace, self._before, self._done = None, _Pace(), now, set()


def remaining_of(config: RunConfig, tasks: Sequence[Task], folder: RunFolder) -> Remaining:
    """What estimates the time left, with what this run has measured before."""
    training, joint = config.training, config.entry.joint
    lessons = [len(task.train) for task in tasks]
    if joint:  # all is learned in the place of the first
        lessons = [sum(lessons), *[0] * (len(tasks) - 1)]
    times = len(tasks) if joint and training.steps is not None else 1
    spent = {}
    for index in range(BASE, len(tasks)):
        seconds = folder.read_notes(index).get("seconds", {})
        if PREDICT in seconds:
            spent[index] = seconds
    return Remaining(
        Sizes(
            steps=[training.steps_for(count) * times if count else 0 for count in lessons],
            samples=lessons,
            tests=[len(task.test) for task in tasks],
        ),
        spent,
    )
