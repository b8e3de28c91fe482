"""A name that isn't known, and the known ones that were probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

NEAR = 0.65  # of difflib's ratio: what is further away is no slip of the pen
LONGEST = 100  # characters of a name that is compared: the time grows with their square


def near(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The known names that one may have been meant to be, the nearest first.

    Case, and `-` for `_`, make no difference.
    """
    alike = {_plain(each): each for each in known}
    return [alike[each] for each in get_close_matches(_plain(name), alike, most, NEAR)]


def unknown(name: str, known: Iterable[str]) -> str:
    """What an error says behind an unknown name: `there are A, B; the nearest is B`.

    Without a name that is near, the known ones alone.
    """
    names = list(known)
    there = f"there are {', '.join(names)}"
    close = near(str(name), names)
    return f"{there}; the nearest is {close[0]}" if close else there


def did_you_mean(words: Sequence[str]) -> str:
    """What an error says behind an unknown name: the words that were probably meant, if any."""
    return f"; did you mean {listed(words)}?" if words else ""


def listed(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _plain(name: str) -> str:
    return name[:LONGEST].strip("-").replace("-", "_").casefold()
