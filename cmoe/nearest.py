"""A name that isn't known is refused with those that are, and the one that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(name: str, known: Iterable[str]) -> str:
    """What an error says behind an unknown name: `there are A, B; the nearest is B`.

    Case doesn't count; without a name that is near, the known ones alone.
    """
    names = list(known)
    folded = {each.casefold(): each for each in reversed(names)}
    near = get_close_matches(str(name)[:100].casefold(), folded, n=1)
    there = f"there are {', '.join(names)}"
    return f"{there}; the nearest is {folded[near[0]]}" if near else there
