"""Which LoRAs a method has learned: what of a run PEFT and transformers can say, too."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from cmoe.methods.registry import methods
from cmoe.modeling.fixed import LowRank, Mixture, NotFixedError, Updates, joined
from cmoe.modeling.primitive import Primitive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PEFT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_ONE = ("lora", "ewc", "lwf", "replay", "multitask")
_EACH = ("per_task_lora", "located_lora")
_SUM = ("olora",)
"""Methods with one LoRA that goes on training, with one for each task, with the sum of those."""

_WHY = {
    "zero_shot": "it has learned nothing: the base alone answers",
    "moelora": "each of its maps has a router that weighs experts token by token, and a LoRA adds "
    "the same to all tokens",
    "hide_llava": "its last layer weighs the tasks' LoRAs by sample, and a LoRA adds the same "
    "to all samples",
}


class Log(Protocol):
    """A log of primitives, as far as adapters are made of it."""

    @property
    def tasks(self) -> tuple[str, ...]: ...

    def read(self, index: int) -> Primitive: ...


def loras(
    log: Log,
    settings: Mapping[str, Any],
    shape: Callable[[], PreTrainedModel],
    *,
    count: int,
    task: str | None = None,
) -> dict[str, Callable[[], Updates]]:
    """What a method has learned, as LoRAs: read when they are asked for, each by its task.

    Args:
        log: Of the method.
        settings: The log's.
        shape: Makes the log's base without weights.
        count: The first tasks of the log, as if there were no others.
        task: Of this one alone.

    Returns:
        By a task's name; by "" where one adapter serves all tasks.

    Raises:
        NotFixedError: The method has other than LoRAs, or one for all tasks and `task` is given;
            or a task isn't one LoRA.
    """
    tasks = log.tasks[:count]
    if task is not None and task not in tasks:
        raise NotFixedError(f"no task {task!r} among {', '.join(tasks)}")
    wanted = tasks if task is None else (task,)
    if "top_k" in settings:
        mixture = Mixture(shape(), [log.read(index) for index in range(count)], settings)
        return _fixed(mixture, tasks, wanted)
    name = settings.get("method", "")
    if name not in (*_ONE, *_EACH, *_SUM):
        why = _WHY.get(name, "what it learns isn't known to be LoRAs")
        raise NotFixedError(f"method {name!r}: {why}")
    if name in _EACH:
        return {each: partial(_sum, log, [tasks.index(each)], name) for each in wanted}
    joint = methods()[name].joint
    if task is not None:
        raise NotFixedError(f"method {name!r} has one adapter for all tasks; leave {task!r} out")
    if joint and count < len(log.tasks):
        raise NotFixedError(
            f"method {name!r} has learned all {len(log.tasks)} tasks at once: there is no adapter "
            f"after {count}"
        )
    indices = range(count) if name in _SUM else [0 if joint else count - 1]
    return {"": partial(_sum, log, indices, name)}


def _fixed(
    mixture: Mixture, tasks: tuple[str, ...], wanted: tuple[str, ...]
) -> dict[str, Callable[[], Updates]]:
    """The wanted tasks of a mixture, all of which have to be fixed."""
    found: dict[str, Updates] = {}
    refused: dict[str, NotFixedError] = {}
    for index, task in enumerate(tasks):
        try:
            if updates := mixture.updates(index):
                found[task] = updates
            else:
                why = "adds nothing to the base, which answers alone"
                refused[task] = NotFixedError(f"task {task!r} {why}")
        except NotFixedError as error:
            refused[task] = error
    for task in wanted:
        if task in refused:
            fit = f"; of one LoRA each: {', '.join(found)}" if found else ""
            raise NotFixedError(f"{refused[task]}{fit}")
    return {task: partial(found.__getitem__, task) for task in wanted}


def _sum(log: Log, indices: Sequence[int], method: str) -> Updates:
    """The LoRAs of some primitives as one, whose rank is the sum of theirs."""
    found = [_read(log, index, method) for index in indices]
    return {name: joined([each[name] for each in found]) for name in found[0]}


def _read(log: Log, index: int, method: str) -> Updates:
    """The updates in a primitive that holds what PEFT calls the state of a LoRA."""
    primitive = log.read(index)
    sides: dict[str, dict[str, Any]] = {}
    for key, tensor in primitive.experts.items():
        if (match := _PEFT.fullmatch(key)) is None:
            raise NotFixedError(
                f"method {method!r}: {key} of task {primitive.task!r} is no part of a LoRA"
            )
        sides.setdefault(match[1], {})[match[2]] = tensor
    return {name: LowRank(**pair, alpha=primitive.lora_alpha) for name, pair in sides.items()}
