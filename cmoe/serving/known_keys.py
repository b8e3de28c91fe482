"""Refuses keys that a type has no field for, with the nearest key that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from cmoe.common.nearest import did_you_mean, near


def require_known(value: Any, kind: Any, at: str = "") -> None:
    """Refuse keys of a tree, at any depth, that its type has no field for.

    Args:
        value: A plain tree.
        kind: The tree's type: a dataclass, a pydantic model, or an annotation with one in it. Where
            it is none of these, any key is taken.
        at: The tree's path.

    Raises:
        ValueError: Names the first unknown key by its path.
    """
    if isinstance(value, list):
        for i, each in enumerate(value):
            require_known(each, kind, f"{at}.{i}")
    known = _fields(kind)
    if not isinstance(value, Mapping) or not known:
        return
    for key, each in value.items():
        path = f"{at}.{key}" if at else str(key)
        if key not in known:
            raise ValueError(f"{path}: there is no such key{did_you_mean(near(str(key), known))}")
        require_known(each, known[key], path)


def _fields(kind: Any) -> dict[str, Any]:
    """Types of a type's fields, by name; in an annotation, those of the first part with fields."""
    if isinstance(kind, type) and is_dataclass(kind):
        return get_type_hints(kind)
    if model_fields := getattr(kind, "model_fields", None):
        return {name: field.annotation for name, field in model_fields.items()}
    return next((found for part in get_args(kind) if (found := _fields(part))), {})
