"""Settings out of range are refused by their key, with the value and what is allowed."""

from __future__ import annotations

from math import inf
from typing import Any


def require(
    settings: Any, section: str, *names: str, least: float = -inf, above: float = -inf
) -> None:
    """Refuse numbers that are too small; null passes where it is a value.

    Args:
        settings: A dataclass.
        section: Its own key in the configuration; "" where it has none.
        names: Of the attributes.
        least: The smallest number allowed.
        above: Or the one that all must exceed.

    Raises:
        ValueError: Names the key, the value and the bound.
    """
    for name in names:
        value = getattr(settings, name)
        if value is None or (value >= least and value > above):
            continue
        bound = f"at least {least}" if least > -inf else f"more than {above}"
        null = ", or null" if "None" in str(type(settings).__annotations__[name]) else ""
        raise ValueError(f"{f'{section}.' if section else ''}{name} is {value}; {bound}{null}")
