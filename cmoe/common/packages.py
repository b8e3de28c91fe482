"""Installed packages that bring something by their entry points, and those that cmoe may lack."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

CMOE = "cmoe"
"""This package; what others bring is named with theirs."""


class RegistryError(ValueError):
    """Something can't be registered as it is."""


class Packages:
    """The installed packages of a group of entry points, each loaded once.

    Args:
        group: Of their entry points.
        registered: All that was registered so far; a package that fails leaves it as it was.
        load: Registers what an entry point brings; it gets the package's name and the point.
    """

    def __init__(
        self,
        group: str,
        registered: MutableMapping[str, Any],
        load: Callable[[str, EntryPoint], object],
    ) -> None:
        self._group, self._registered, self._load = group, registered, load
        self._problems: tuple[str, ...] | None = None

    def problems(self) -> tuple[str, ...]:
        """Load the packages, once; a sentence on each that can't be used."""
        if self._problems is None:
            self._problems = ()  # for what asks while it is being loaded itself
            found = [self._problem(point) for point in entry_points(group=self._group)]
            self._problems = tuple(filter(None, found))
        return self._problems

    def _problem(self, point: EntryPoint) -> str | None:
        package = point.dist.name if point.dist else point.value
        before = dict(self._registered)
        try:
            self._load(package, point)
        except Exception as error:  # a stranger's module: whatever it raises
            self._registered.clear()
            self._registered.update(before)
            why = f"{point.value} ends in {type(error).__name__}: {error}"
            return unusable(package, str(error) if isinstance(error, RegistryError) else why)
        return None


def unusable(package: str, why: str) -> str:
    """The sentence about a package whose part can't be registered."""
    return f"package {package} can't be used: {why}; mend or uninstall it"


def lacking(name: str, module: str, extra: str) -> str | None:
    """That a module isn't installed, and which of cmoe's extras brings it; None where it is."""
    if find_spec(module) is not None:
        return None
    return f"{name} isn't installed; `pip install 'cmoe[{extra}]'` installs it"
