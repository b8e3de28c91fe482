"""Continuous batching: one thread answers a batch that requests join and leave between tokens.

The thread alone touches the model. Other threads hand it work (`submit`, `between`) and get events
back, all those of a token in one call.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from random import Random
from threading import Condition, Thread
from typing import Any, Literal, TypeVar

from cmoe.modeling.growing import GrowingVLM
from cmoe.serving.engines.builtin.batch import Batch, Choice, Prompt, draw, padding
from cmoe.serving.engines.builtin.decoding import Decoding, scores_of
from cmoe.serving.settings import EngineConfig

T = TypeVar("T")
Finish = Literal["stop", "length"]
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of a part of a character


@dataclass(frozen=True)
class Job:
    """A prompt and how it is to be answered.

    Attributes:
        prompt: Inputs of the base for a batch of one.
        task: Index of the primitive that answers, -1 for the base alone; None locates it.
        max_new_tokens: Of the answer.
        temperature: See `Choice`.
        top_p: See `Choice`.
        seed: Of the row's numbers; None takes others each time.
        stop: Texts that end the answer; they aren't part of it.
        stream: Whether parts of the text are wanted as they come.
    """

    prompt: Prompt
    task: int | None
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False

    @property
    def tokens(self) -> int:
        """In the cache at the end, at most."""
        return self.prompt["input_ids"].shape[1] + self.max_new_tokens


@dataclass(frozen=True)
class Event:
    """What became of a job since its last event.

    Attributes:
        text: What follows.
        task: Index of the primitive that answers.
        scores: Of all tasks, where the job was located here.
        unknown: Whether no task claimed it, where it was located here.
        tokens: Of the answer, so far.
        waited: Seconds from its arrival until its prompt was read.
        first: Seconds from its arrival until its first token.
        last: And until its last one so far.
        finish: Why the answer ended; None while it runs.
        failure: Why there will be no more of it.
    """

    text: str = ""
    task: int = -1
    scores: tuple[float, ...] | None = None
    unknown: bool = False
    tokens: int = 0
    waited: float = 0.0
    first: float = 0.0
    last: float = 0.0
    finish: Finish | None = None
    failure: str | None = None


Listener = Callable[[Event], None]


@dataclass(eq=False)
class _Row:
    job: Job
    listener: Listener
    choice: Choice
    arrived: float
    text: Text
    event: Event = field(default_factory=Event)
    cancelled: bool = False
    prompt: Sequence[int] = ()  # its tokens, where they count for the scores
    processors: Any = None  # transformers', which change the scores


class Text:
    """An answer's text as its tokens come, up to where it stops.

    Held back is what may still change: a part of a character, white space at the end, and the
    beginning of a stop text. So the parts together are the whole answer, stripped.

    Args:
        tokenizer: The base's.
        stop: See `Job`.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.ids: list[int] = []
        self._tokenizer, self._stop = tokenizer, stop
        self._settled = ""  # text of the tokens before `_behind`
        self._before = self._behind = 0
        self._said = 0

    def add(self, token: int) -> bool:
        """Whether the answer stops here."""
        self.ids.append(token)
        if not self._stop:
            return False
        text = self._whole()
        return any(stop in text for stop in self._stop)

    def part(self, *, final: bool) -> str:
        """What can be said now and wasn't before."""
        text = self._whole().lstrip()
        cut = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=None)
        if cut is not None:
            text = text[:cut]
        elif not final:
            text = text.rstrip(UNFINISHED)
            longest = max(map(len, self._stop), default=1) - 1
            for held in range(min(longest, len(text)), 0, -1):
                if any(stop.startswith(text[-held:]) for stop in self._stop):
                    text = text[:-held]
                    break
        text = text.rstrip()
        part = text[self._said :]
        self._said = max(self._said, len(text))
        return part

    def _whole(self) -> str:
        """The text so far. Only the last tokens are decoded again: a token's text depends on the
        one before it.
        """
        known = self._decoded(self._before, self._behind)
        now = self._decoded(self._before, len(self.ids))
        if len(now) > len(known) and not now.endswith(UNFINISHED):
            self._settled += now[len(known) :]
            self._before, self._behind = self._behind, len(self.ids)
            return self._settled
        return self._settled + now[len(known) :]

    def _decoded(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(self.ids[start:end], skip_special_tokens=True)
        return text


class Engine:
    """Answers jobs with a model, from a thread of its own.

    Args:
        model: What answers; nobody else may use it, but for `between`.
        tokenizer: The base's.
        config: Its limits.

    Raises:
        UnservedBaseError: The base's `generation_config` asks for what no batch can do.

    Attributes:
        waiting: Jobs that have not begun.
        running: Those that have.
        failures: Passes that failed, since one went well.
    """

    def __init__(self, model: GrowingVLM, tokenizer: Any, config: EngineConfig) -> None:
        self._model, self._tokenizer, self.config = model, tokenizer, config
        self._decoding = Decoding(model.base)
        self._batch = Batch(model, padding(tokenizer))
        self._rows: list[_Row] = []
        self._queue: deque[_Row] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._condition = Condition()
        self._closed = False
        self.failures = 0
        self._busy_since: float | None = None
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._rows)

    def submit(self, job: Job, listener: Listener) -> Callable[[], None]:
        """Answer a job; `listener` is called from the engine's thread. The result cancels it.

        Raises:
            ValueError: It can never fit.
        """
        if job.tokens > self.config.max_tokens:
            raise ValueError(
                f"prompt and answer may have {job.tokens} tokens, and a replica holds "
                f"{self.config.max_tokens} (engine.max_tokens)"
            )
        random = Random(job.seed).random
        choice = Choice(job.temperature, job.top_p, random)
        row = _Row(job, listener, choice, time.monotonic(), Text(self._tokenizer, job.stop))
        with self._condition:
            self._queue.append(row)
            self._condition.notify()

        def cancel() -> None:
            with self._condition:
                row.cancelled = True
                if row in self._queue:
                    self._queue.remove(row)

        return cancel

    def between(self, call: Callable[[], T]) -> Future[T]:
        """Run something in the engine's thread, between two passes."""
        done: Future[T] = Future()
        with self._condition:
            self._calls.append((call, done))
            self._condition.notify()
        return done

    def stuck(self) -> float | None:
        """Seconds of a pass that takes too long, if one does."""
        since = self._busy_since
        spent = 0.0 if since is None else time.monotonic() - since
        return spent if spent > self.config.stuck_s or not self._thread.is_alive() else None

    def close(self) -> None:
        """End the thread; what runs is not finished."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    # The engine's thread

    def _run(self) -> None:
        while True:
            with self._condition:
                self._busy_since = None
                while not (self._queue or self._rows or self._calls or self._closed):
                    self._condition.wait()
                if self._closed:
                    return
                self._busy_since = time.monotonic()
                calls, self._calls = self._calls, deque()
            for call, done in calls:
                if not done.set_running_or_notify_cancel():
                    continue  # nobody waits for it any more
                try:
                    done.set_result(call())
                except BaseException as error:  # whoever asked is told
                    done.set_exception(error)
            try:
                self._round()
            except Exception as error:  # the rows are lost, the engine is not
                rows, self._rows = self._rows, []
                self._batch = Batch(self._model, self._batch.pad)
                self._fail(rows, error)

    def _round(self) -> None:
        """A token for every row that runs; then new rows, with their first one."""
        self._leave([row for row in self._rows if row.cancelled])
        if self._rows:
            logits = self._batch.step([row.text.ids[-1] for row in self._rows])
            self._take(self._rows, logits)
        for new in self._admitted():
            tasks = [row.job.task for row in new if row.job.task is not None]
            begun = time.monotonic()
            try:
                self._plan(new)
                logits, location = self._batch.join([r.job.prompt for r in new], tasks or None)
            except Exception as error:  # of theirs: those that run are as they were
                self._fail(new, error)
                continue
            self._rows += new
            located = location is not None and location.scores.tolist()
            unknown = location is not None and location.unknown.tolist()
            for i, row in enumerate(new):
                row.event = Event(
                    task=self._batch.tasks[len(self._rows) - len(new) + i],
                    scores=tuple(located[i]) if located else None,
                    unknown=unknown[i] if unknown else False,
                    waited=begun - row.arrived,
                )
            self._take(new, logits)
        self._leave([row for row in self._rows if row.event.finish])

    def _plan(self, rows: Sequence[_Row]) -> None:
        """Look up what changes the rows' scores, where anything does."""
        if not self._decoding.changes:
            return
        for row in rows:
            row.prompt = row.job.prompt["input_ids"][0].tolist()
            row.processors = self._decoding.processors(row.prompt, row.job.max_new_tokens)

    def _take(self, rows: Sequence[_Row], logits: Any) -> None:
        """Give each row its next token."""
        if self._decoding.changes:
            logits = scores_of(logits, [(r.processors, [*r.prompt, *r.text.ids]) for r in rows])
        self.failures, now = 0, time.monotonic()
        for row, token in zip(rows, draw(logits, [r.choice for r in rows]), strict=True):
            count = len(row.text.ids) + 1
            finish: Finish | None = None
            if token in self._decoding.ends or row.text.add(token):
                finish = "stop"
            elif count == row.job.max_new_tokens:
                finish = "length"
            text = row.text.part(final=finish is not None) if finish or row.job.stream else ""
            row.event = replace(
                row.event,
                text=text,
                tokens=count,
                first=row.event.first or now - row.arrived,
                last=now - row.arrived,
                finish=finish,
            )
            if finish or (row.job.stream and (text or count == 1)):
                row.listener(row.event)

    def _admitted(self) -> list[list[_Row]]:
        """Rows that may join, those with a known task and those to be located."""
        new: list[_Row] = []
        with self._condition:
            if self._rows and self._queue and len(self._queue) < self.config.join_at_once:
                waited = time.monotonic() - self._queue[0].arrived
                if waited < self.config.join_wait_s:
                    return []
            longest = max((row.job.tokens for row in self._rows), default=0)
            while self._queue and len(new) < self.config.join_at_once:
                row = self._queue[0]
                count = len(self._rows) + len(new) + 1
                needed = max(longest, row.job.tokens)
                if count * needed > self.config.max_tokens or count > self.config.max_batch:
                    break
                longest = needed
                new.append(self._queue.popleft())
        known = [row for row in new if row.job.task is not None]
        return [group for group in (known, [r for r in new if r.job.task is None]) if group]

    def _leave(self, rows: Sequence[_Row]) -> None:
        if rows:
            gone = {id(row) for row in rows}
            stay = [i for i, row in enumerate(self._rows) if id(row) not in gone]
            self._batch.keep(stay)
            self._rows = [self._rows[i] for i in stay]

    def _fail(self, rows: Sequence[_Row], error: Exception) -> None:
        """Rows end, with the reason."""
        self.failures += 1
        for row in rows:
            if not row.event.finish:
                row.listener(Event(failure=f"{type(error).__name__}: {error}"))
