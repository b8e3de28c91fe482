"""Which LoRAs a method has learned: what of a run PEFT and transformers can say, too."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from cmoe.methods.registry import methods
from cmoe.modeling.fixed import LowRank, Mixture, NotFixedError, Updates
from cmoe.modeling.primitive import Primitive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PEFT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_WHY = {
    "zero_shot": "it has learned nothing: the base alone answers",
    "moelora": "each of its maps has a router that weighs experts token by token, and a LoRA adds "
    "the same to all tokens",
    "hide_llava": "its last layer weighs the tasks' LoRAs by sample, and a LoRA adds the same "
    "to all samples",
}
_SUMMED = ("olora",)
"""Methods of one LoRA per task whose sum answers all."""


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
    entry = methods().get(name)
    if entry is None or name in _WHY:
        why = _WHY.get(name, "it isn't known here; install the package that brings it")
        raise NotFixedError(f"method {name!r}: {why}")
    if entry.locates or entry.told == "the task":
        indices = {each: tasks.index(each) for each in wanted}
    elif task is not None:
        raise NotFixedError(f"method {name!r} has one adapter for all tasks; leave {task!r} out")
    elif entry.joint and count < len(log.tasks):
        raise NotFixedError(
            f"method {name!r} has learned all {len(log.tasks)} tasks at once: there is no adapter "
            f"after {count}"
        )
    elif name in _SUMMED:
        return {"": partial(_sum, log, range(count), name)}
    else:
        indices = {"": 0 if entry.joint else count - 1}
    return {each: partial(_read, log, index, name) for each, index in indices.items()}


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


def _sum(log: Log, indices: range, method: str) -> Updates:
    """Those of several primitives, each stacked along its rank: such a product is their sum."""
    import torch

    found = [_read(log, index, method) for index in indices]
    return {
        name: LowRank(
            A=torch.cat([updates[name].A for updates in found], 0),
            B=torch.cat([updates[name].B for updates in found], 1),
            alpha=sum(updates[name].alpha for updates in found),
        )
        for name in found[0]
    }
