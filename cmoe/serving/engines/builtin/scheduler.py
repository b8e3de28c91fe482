"""Continuous batching: one thread answers a batch that requests join and leave between tokens.

Only this thread uses the model. Other threads give it work (`submit`, `between`) and get parts of
answers back: all that a token adds in one call.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from random import Random
from threading import Condition, Thread
from typing import Any, TypeVar

from torch import Tensor

from cmoe.data.padding import pad_token
from cmoe.modeling import locator
from cmoe.modeling.growing import GrowingVLM
from cmoe.serving.engines.answer_text import AnswerText
from cmoe.serving.engines.builtin.batch import Batch
from cmoe.serving.engines.builtin.decoding import Decoding, scores_of
from cmoe.serving.engines.builtin.sampling import Choice, draw
from cmoe.serving.messages import AnswerPart, Finish, Location, Sampling
from cmoe.serving.prompts import TensorPrompt
from cmoe.serving.settings import EngineConfig

T = TypeVar("T")
Listener = Callable[[AnswerPart], None]


@dataclass(frozen=True)
class Job:
    """A prompt and how it is to be answered.

    Attributes:
        prompt: The base's inputs for a batch of one.
        task: Index of the primitive that answers, -1 for the base alone; None locates the prompt.
        sampling: How the answer is sampled.
        stream: Whether parts of the text are wanted as they come.
    """

    prompt: TensorPrompt
    task: int | None
    sampling: Sampling
    stream: bool = False

    @property
    def max_tokens(self) -> int:
        """The most tokens that the job will have in the cache."""
        return self.prompt["input_ids"].shape[1] + self.sampling.max_tokens


@dataclass(eq=False)
class _Row:
    """A job that waits or runs, and its answer so far."""

    job: Job
    listener: Listener
    choice: Choice
    arrived: float
    text: AnswerText
    part: AnswerPart = field(default_factory=AnswerPart)
    cancelled: bool = False
    prompt: Sequence[int] = ()  # the prompt's tokens, where they change scores
    processors: Any = None  # transformers' processors that change scores


class Scheduler:
    """Answers jobs with a model, from a thread of its own.

    Args:
        model: The model that answers. Everybody else uses it through `between`.
        tokenizer: The base's.
        config: Limits of the batch.

    Raises:
        UnservedBaseError: The base's `generation_config` asks for what no batch can do.

    Attributes:
        failures: Number of passes that failed since the last that succeeded.
    """

    def __init__(self, model: GrowingVLM, tokenizer: Any, config: EngineConfig) -> None:
        self._model, self._tokenizer, self.config = model, tokenizer, config
        self._decoding = Decoding(model.base)
        self._batch = Batch(model, pad_token(tokenizer))
        self._rows: list[_Row] = []
        self._queue: deque[_Row] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._condition = Condition()
        self._closed = False
        self.failures = 0
        self._busy_since: float | None = None
        self._thread = Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that have not begun."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Number of jobs under way."""
        return len(self._rows)

    def submit(self, job: Job, listener: Listener) -> Callable[[], None]:
        """Answer a job.

        Args:
            job: The job.
            listener: Gets the answer's parts, in the scheduler's thread.

        Returns:
            A function that cancels the job.

        Raises:
            ValueError: The job never fits into the cache.
        """
        if job.max_tokens > self.config.max_tokens:
            raise ValueError(
                f"prompt and answer may have {job.max_tokens} tokens, and a replica holds "
                f"{self.config.max_tokens} (engine.max_tokens)"
            )
        sampling = job.sampling
        choice = Choice(sampling.temperature, sampling.top_p, Random(sampling.seed).random)
        text = AnswerText(self._tokenizer, sampling.stop)
        row = _Row(job, listener, choice, time.monotonic(), text)
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
        """Run a call in the scheduler's thread, between two passes."""
        done: Future[T] = Future()
        with self._condition:
            self._calls.append((call, done))
            self._condition.notify()
        return done

    def stuck(self) -> float | None:
        """Seconds of a pass that takes too long, or since the thread ended; None otherwise."""
        since = self._busy_since
        spent = 0.0 if since is None else time.monotonic() - since
        return spent if spent > self.config.stuck_s or not self._thread.is_alive() else None

    def close(self) -> None:
        """End the thread; answers under way are not finished."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    # The scheduler's thread

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
                _complete(done, call)
            try:
                self._advance()
            except Exception as error:  # the rows are lost, the thread goes on
                rows, self._rows = self._rows, []
                self._batch = Batch(self._model, self._batch.pad)
                self._fail(rows, error)

    def _advance(self) -> None:
        """Give every row its next token; then let new rows join, with their first one."""
        self._remove([row for row in self._rows if row.cancelled])
        if self._rows:
            logits = self._batch.step([row.text.ids[-1] for row in self._rows])
            self._add_tokens(self._rows, logits)
        for new in self._joining():
            self._join(new)
        self._remove([row for row in self._rows if row.part.finish])

    def _join(self, new: Sequence[_Row]) -> None:
        """Read the prompts of new rows. If that fails, the rows that run stay as they are."""
        tasks = [row.job.task for row in new if row.job.task is not None]
        begun = time.monotonic()
        try:
            self._find_processors(new)
            logits, found = self._batch.join([row.job.prompt for row in new], tasks or None)
        except Exception as error:
            self._fail(new, error)
            return
        tasks = self._batch.tasks[len(self._rows) :]
        self._rows += new
        locations = [None] * len(new) if found is None else _locations(tasks, found)
        for row, task, location in zip(new, tasks, locations, strict=True):
            queued_s = begun - row.arrived
            row.part = AnswerPart(task=task, location=location, queued_s=queued_s)
        self._add_tokens(new, logits)

    def _find_processors(self, rows: Sequence[_Row]) -> None:
        """Look up what changes the rows' scores, if anything does."""
        if not self._decoding.changes_scores:
            return
        for row in rows:
            row.prompt = row.job.prompt["input_ids"][0].tolist()
            max_tokens = row.job.sampling.max_tokens
            row.processors = self._decoding.processors(row.prompt, max_tokens)

    def _add_tokens(self, rows: Sequence[_Row], logits_bv: Tensor) -> None:
        """Give each row its next token, and tell its listener."""
        if self._decoding.changes_scores:
            read = [(row.processors, [*row.prompt, *row.text.ids]) for row in rows]
            logits_bv = scores_of(logits_bv, read)
        self.failures, now = 0, time.monotonic()
        for row, token in zip(rows, draw(logits_bv, [r.choice for r in rows]), strict=True):
            count, stream = len(row.text.ids) + 1, row.job.stream
            finish: Finish | None = None
            if token in self._decoding.ends or row.text.add(token):
                finish = "stop"
            elif count == row.job.sampling.max_tokens:
                finish = "length"
            text = row.text.take_part(final=finish is not None) if finish or stream else ""
            row.part = replace(
                row.part,
                text=text,
                tokens=count,
                first_token_s=row.part.first_token_s or now - row.arrived,
                last_token_s=now - row.arrived,
                finish=finish,
            )
            if finish or (stream and (text or count == 1)):
                row.listener(row.part)

    def _joining(self) -> list[list[_Row]]:
        """The rows that may join now: those whose task is known, and those to be located."""
        new: list[_Row] = []
        with self._condition:
            if self._rows and self._queue and len(self._queue) < self.config.join_at_once:
                waited = time.monotonic() - self._queue[0].arrived
                if waited < self.config.join_wait_s:
                    return []
            longest = max((row.job.max_tokens for row in self._rows), default=0)
            while self._queue and len(new) < self.config.join_at_once:
                row = self._queue[0]
                count = len(self._rows) + len(new) + 1
                needed = max(longest, row.job.max_tokens)
                if count * needed > self.config.max_tokens or count > self.config.max_batch:
                    break
                longest = needed
                new.append(self._queue.popleft())
        named = [row for row in new if row.job.task is not None]
        return [group for group in (named, [r for r in new if r.job.task is None]) if group]

    def _remove(self, rows: Sequence[_Row]) -> None:
        if rows:
            gone = {id(row) for row in rows}
            stay = [i for i, row in enumerate(self._rows) if id(row) not in gone]
            self._batch.keep(stay)
            self._rows = [self._rows[i] for i in stay]

    def _fail(self, rows: Sequence[_Row], error: Exception) -> None:
        """End the answers of rows, with the reason."""
        self.failures += 1
        for row in rows:
            if not row.part.finish:
                row.listener(AnswerPart(failure=f"{type(error).__name__}: {error}"))


def _complete(done: Future[Any], call: Callable[[], Any]) -> None:
    """Call, and give the result or the error to whoever waits for it; without a waiter, nothing."""
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(call())
    except BaseException as error:
        done.set_exception(error)


def _locations(tasks: Sequence[int], found: locator.Location) -> list[Location]:
    """Each row's location, with the task that answers it."""
    rows = zip(tasks, found.scores.tolist(), found.unknown.tolist(), strict=True)
    return [Location(task, tuple(scores), unknown) for task, scores, unknown in rows]
