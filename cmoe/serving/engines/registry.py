"""Executors by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

from cmoe.common.nearest import unknown
from cmoe.serving.engines.executor import Executor

MODULES = {
    "builtin": "cmoe.serving.engines.builtin.executor",
    "vllm": "cmoe.serving.engines.vllm.executor",
}
"""Where an executor registers itself: imported when it is asked for."""

E = TypeVar("E", bound=type[Executor])
_EXECUTORS: dict[str, type[Executor]] = {}


def register_executor(name: str) -> Callable[[E], E]:
    """A decorator that registers a class as the executor of a name."""

    def register(executor: E) -> E:
        _EXECUTORS[name] = executor
        return executor

    return register


def executor_class(name: str) -> type[Executor]:
    """The executor that is registered by a name.

    Raises:
        ValueError: There is none; names those that there are.
    """
    if name in MODULES:
        import_module(MODULES[name])
    if name not in _EXECUTORS:
        raise ValueError(
            f"there is no executor {name!r}; {unknown(name, {**MODULES, **_EXECUTORS})}"
        )
    return _EXECUTORS[name]
