"""What learning and answering cost on this machine."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

from cmoe.methods.method import Method
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.routers import BASE

ROUNDS = 3
TOKENS = 8
"""Of a timed answer: as many for everyone, as a base that was taught nothing doesn't stop."""


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has needed at most: on its GPU, or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer_seconds(method: Method, stage: int, inputs: Sequence[Inputs]) -> dict[str, float]:
    """Median seconds of answers to single prompts, by the base and by the method in turn.

    A method that locates finds the task first.

    Args:
        method: After all stages up to `stage`.
        stage: The latest.
        inputs: A prompt of each task, in their order.
    """
    seconds: dict[str, list[float]] = {"base": [], "answer": []}
    for task, prompt in enumerate(inputs):
        for number in range(ROUNDS + 1):
            taken = {
                "base": _taken(prompt, lambda prompt: _answer(method, prompt, BASE)),
                "answer": _taken(prompt, partial(_find_and_answer, method, stage, task)),
            }
            if number:  # the first round warms up, and brings the task's own adapter
                for name, value in taken.items():
                    seconds[name].append(value)
    return {name: median(values) for name, values in seconds.items()}


def _find_and_answer(method: Method, stage: int, task: int, prompt: Inputs) -> None:
    if method.locates:
        found = int(method.locate(method.features(prompt)).tasks[0])
    else:
        found = method.answerer(stage, task)
    _answer(method, prompt, found)


def _answer(method: Method, prompt: Inputs, by: int) -> None:
    method.generate(prompt, by, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)


def _taken(prompt: Inputs, ask: Callable[[Inputs], None]) -> float:
    on_gpu = prompt["input_ids"].is_cuda
    start = time.perf_counter()
    ask(prompt)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start
