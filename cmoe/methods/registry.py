"""All methods by name: cmoe's own, and those of installed packages.

A package names a module in its entry points, and what that module registers is there everywhere:

    [project.entry-points."cmoe.methods"]
    pulled = "cmoe_pulled"

A package that can't be used changes nothing; `problems` says why, and no run starts with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from types import MappingProxyType

from cmoe.common.nearest import unknown
from cmoe.common.packages import Packages
from cmoe.methods import builtin  # noqa: F401  registers cmoe's own
from cmoe.methods.entry import (
    ENTRIES,
    MethodEntry,
    register_method,
    registering_for,
)

__all__ = ["method_entry", "methods", "problems", "register_method"]

GROUP = "cmoe.methods"
"""Of a package's entry points."""


def methods() -> Mapping[str, MethodEntry]:
    """All methods by name, cmoe's own first."""
    problems()
    return MappingProxyType(ENTRIES)


def method_entry(name: str) -> MethodEntry:
    """What is registered of a method.

    Raises:
        ValueError: There is none of this name; says which there are, and the nearest.
    """
    known = methods()
    if name not in known:
        raise ValueError("; ".join([f"method is {name!r}; {unknown(name, known)}", *problems()]))
    return known[name]


def _load(package: str, point: EntryPoint) -> None:
    with registering_for(package):
        point.load()


problems = Packages(GROUP, ENTRIES, _load).problems
"""Load the packages that bring methods, once; a sentence on each that can't be used."""
