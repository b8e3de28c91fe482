"""Which versions a process has of what a run depends on, and who differs from the others.

Nothing but Python itself is needed, and nothing heavy is imported: where cmoe is missing or broken,
that is what is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

PACKAGES = ("ray", "torch", "transformers", "deepspeed")
MISSING = "missing"


def versions() -> dict[str, str]:
    """Of Python, of cmoe with a digest of its sources, and of the packages."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "cmoe": _own_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = MISSING
    return found


def _own_version() -> str:
    from hashlib import sha256
    from importlib import import_module
    from pathlib import Path

    try:
        cmoe = import_module("cmoe")
    except Exception as error:  # whatever a broken installation raises
        return f"{MISSING} ({type(error).__name__}: {error})"
    folder = Path(cmoe.__path__[0])
    digest = sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return f"{cmoe.__version__} ({digest.hexdigest()[:8]})"


def usual(values: Mapping[str, str], first: str) -> str:
    """The most frequent value; of several, that of `first` if it is among them."""
    counts = Counter(values.values())
    most = max(counts.values())
    often = [value for value, count in counts.items() if count == most]
    return values[first] if values.get(first) in often else often[0]


def unlike(found: Mapping[str, Mapping[str, str]], first: str) -> list[tuple[str, str]]:
    """Who has other versions than most, and a sentence on which.

    Args:
        found: By machine or process, what `versions` said there.
        first: Who counts where none is more frequent.
    """
    told = []
    for what in dict.fromkeys(name for each in found.values() for name in each):
        values = {who: each.get(what, MISSING) for who, each in found.items()}
        right = usual(values, first)
        like = "most have" if values.get(first) != right else f"{first} has"
        for who, value in values.items():
            if value != right:
                told.append((who, f"{what} is {value}, and {like} {right}"))
    return told
