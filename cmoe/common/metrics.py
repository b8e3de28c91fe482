"""Every figure that Prometheus gets of cmoe: the one list, which makers and dashboards are held to.

Ray's agents export them under these names with `ray_` in front, a counter with `_total` behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RAY = "ray_"
SECONDS = tuple(0.001 * 2**n for n in range(17))
"""Buckets from a millisecond to a minute."""
COUNTS = tuple(float(2**n) for n in range(9))
"""Buckets from 1 to 256."""


@dataclass(frozen=True)
class Metric:
    """A figure.

    Attributes:
        name: As it is made.
        kind: Ray's class of it.
        text: What it says.
        labels: Its own; Ray adds those of the node, the session and the process.
        bounds: Of a histogram's buckets.
    """

    name: str
    kind: Literal["Gauge", "Counter", "Histogram"]
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names of its samples."""
        endings = {"Gauge": ("",), "Counter": ("_total",)}
        found = endings.get(self.kind, ("_bucket", "_count", "_sum"))
        return tuple(f"{RAY}{self.name}{ending}" for ending in found)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"cmoe_train_{name}", "Gauge", text, ("run", *labels))


# Training: all by the run's driver

TASKS = _gauge("tasks", "Tasks of the stream.")
TASK = _gauge("task", "The task at work: 1 is the first, 0 the base before it.")
PHASE = _gauge("phase_info", "1 of the phase at work, 0 of those before.", "task", "phase")
STEP = _gauge("step", "Steps of the phase at work that are done.")
STEPS = _gauge("steps", "Steps that the phase at work has in all.")
LOSS = _gauge("loss", "Loss of the last step that was logged.")
LEARNING_RATE = _gauge("learning_rate", "Learning rate of that step.")
TOKEN_RATE = _gauge("tokens_per_second", "Tokens of all workers, padding included.")
TOKENS = Metric(
    "cmoe_train_tokens",
    "Counter",
    "Tokens of all workers that trainings went over, padding included.",
    ("run", "phase"),
)
MEMORY = _gauge("memory_peak_bytes", "What the first worker has needed at most.")
STEP_TIME = _gauge("step_seconds", "Mean of a worker's last steps.", "worker", "node")
BEAT_AGE = _gauge(
    "worker_beat_age_seconds", "Since a worker's last sign of life.", "worker", "node"
)
UPLOADS = _gauge("upload_queue_files", "Files that wait for their upload to S3.", "worker", "node")
CHECKPOINTS = _gauge("checkpoint_uploads", "Checkpoints that are being kept.", "worker", "node")
WORKERS = _gauge("workers", "Workers that are at work.")
RESTARTS = _gauge("restarts", "How often this job started its workers again.")
PROGRESS_AGE = _gauge("progress_age_seconds", "Since any worker's last progress.")
REMAINING = _gauge("remaining_seconds", "Until the end of the run, as estimated.")
ACCURACY = _gauge("accuracy_ratio", "A task's latest score, 1 for 100%.", "task")
LAST = _gauge("last_ratio", "Mean score over the tasks learned so far, 1 for 100%.")
TRANSFER = _gauge("bwt_ratio", "Backward transfer, 1 for 100 points.")

TRAINING = (
    *(TASKS, TASK, PHASE, STEP, STEPS, LOSS, LEARNING_RATE, TOKEN_RATE, TOKENS, MEMORY),
    *(STEP_TIME, BEAT_AGE, UPLOADS, CHECKPOINTS, WORKERS, RESTARTS, PROGRESS_AGE, REMAINING),
    *(ACCURACY, LAST, TRANSFER),
)

# Serving: each by the replicas that know it


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"cmoe_{name}", "Counter", text, labels)


def _seconds(name: str, text: str, *labels: str) -> Metric:
    return Metric(f"cmoe_{name}_seconds", "Histogram", text, labels, SECONDS)


REQUESTS = _counter("requests", "Requests answered, by task and status.", "task", "status")
REFUSED = _counter("refused", "Requests that weren't answered, by their error's code.", "code")
LOCATED = _counter("located", "Prompts by the task that they were located at.", "task")
UNKNOWN = _counter("unknown", "Located prompts that no task claims.")
PROMPT_TOKENS = _counter("prompt_tokens", "Tokens of prompts that were answered.", "task")
ANSWER_TOKENS = _counter("answer_tokens", "Tokens of answers.", "task")
REQUEST_TIME = _seconds("request", "Seconds from a question's arrival to its answer's last byte.")
LOCATE_TIME = _seconds("locate", "Seconds from a prompt's arrival to its task.")
LOCATE_BATCH = Metric(
    "cmoe_locate_batch_prompts",
    "Histogram",
    "Prompts that are located together.",
    bounds=COUNTS,
)
QUEUE_TIME = _seconds("queue", "Seconds that a prompt waited until it was read.", "task")
FIRST_TOKEN_TIME = _seconds(
    "first_token", "Seconds from a prompt's arrival to its first token.", "task"
)
TOKEN_TIME = _seconds("token", "Seconds of a further token.", "task")
RUNNING = Metric("cmoe_running", "Gauge", "Answers that an executor has under way: its batch.")
WAITING = Metric("cmoe_waiting", "Gauge", "Prompts that wait for a place in an executor's batch.")

SERVING = (
    *(REQUESTS, REFUSED, LOCATED, UNKNOWN, PROMPT_TOKENS, ANSWER_TOKENS, REQUEST_TIME),
    *(LOCATE_TIME, LOCATE_BATCH, QUEUE_TIME, FIRST_TOKEN_TIME, TOKEN_TIME, RUNNING, WAITING),
)
