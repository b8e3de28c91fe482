"""Keys that an object of a kind may have; what is unknown is named, with the nearest that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from cmoe.common.nearest import near


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What follows an unknown word: the known one that is nearest, if any is near."""
    close = near(word, known)
    return f"; did you mean {close[0]}?" if close else ""


def require_known(value: Any, kind: Any, at: str = "") -> None:
    """Refuse keys, at any depth, that a kind's fields don't name.

    Args:
        value: A plain tree.
        kind: A dataclass, a pydantic model, or an annotation that holds one; of others any key will
            do.
        at: Path of the tree.

    Raises:
        ValueError: Names the first unknown key with its path.
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
            raise ValueError(f"{path}: there is no such key{did_you_mean(str(key), known)}")
        require_known(each, known[key], path)


def _fields(kind: Any) -> dict[str, Any]:
    """Annotations of a kind's fields, by name; of the first part of an annotation that has any."""
    if isinstance(kind, type) and is_dataclass(kind):
        return get_type_hints(kind)
    if model_fields := getattr(kind, "model_fields", None):
        return {name: field.annotation for name, field in model_fields.items()}
    return next((found for part in get_args(kind) if (found := _fields(part))), {})
