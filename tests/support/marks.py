"""Marks that tests have by what they start, so that nobody keeps a list of slow ones."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

Helper = TypeVar("Helper", bound=Callable[..., Any])


def starts(what: str) -> Callable[[Helper], Helper]:
    """Tests in a module that imports the helper have this mark: `ray`, or `group`."""

    def marked(helper: Helper) -> Helper:
        helper.starts = what  # type: ignore[attr-defined]
        return helper

    return marked


def marks_of(module: ModuleType) -> set[str]:
    """What a module's helpers start, and `ray` for one that imports Ray itself."""
    marks = set()
    for value in vars(module).values():
        if isinstance(value, ModuleType):
            marks |= {"ray"} & {value.__name__}
        elif isinstance(mark := getattr(value, "starts", None), str):
            marks.add(mark)
    return marks
