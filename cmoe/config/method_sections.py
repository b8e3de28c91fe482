"""Registered methods in a run's configuration: their names, and a section for what each is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal, TypeVar, get_type_hints

from cmoe.common.packages import CMOE, unusable
from cmoe.methods.registry import methods, problems
from cmoe.tasks import scorer_registry

Run = TypeVar("Run")


def with_methods(kind: type[Run]) -> type[Run]:
    """Make all registered methods choices of a run's `method`, and their sections its attributes.

    For the class before `dataclass` sees it. It names those sections itself that cmoe's code reads,
    so that their types are checked; the others come behind its own attributes.
    """
    hints, doc = kind.__annotations__, [(kind.__doc__ or "").rstrip()]
    added = set()
    hints["method"] = Literal[tuple(methods())]
    for entry in methods().values():
        for key, section in entry.sections.items():
            if key not in hints and not hasattr(kind, key):
                hints[key] = section
                added.add(key)
                setattr(kind, key, field(default_factory=section))
                doc.append(f"        {key}: Of `{entry.name}`.")
    kind.added_sections = frozenset(added)  # type: ignore[attr-defined]
    kind.__doc__ = "\n".join([*doc, "    "])
    return kind


def unusable_packages(run: type[Any], others: Mapping[str, Any]) -> list[str]:
    """A sentence on each installed package whose methods or scorers can't be used.

    Args:
        run: The class of a run.
        others: Keys beside the run's own, which no method's section may have.
    """
    known = {**get_type_hints(run), **others}
    return [
        *problems(),
        *scorer_registry.problems(),
        *(
            unusable(entry.package, f"section {key!r} of method {entry.name!r} is another key")
            for entry in methods().values()
            for key, section in entry.sections.items()
            if entry.package != CMOE and known.get(key) is not section
        ),
    ]
