"""How a process holds a file that it has mapped: as Linux tells."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def mapped(file: Path) -> Counter[str]:
    """Bytes of this process's pages of a file, by kind: `Rss`, and `Anonymous` for its own copies.

    Pages that aren't its own copies are shared with whoever maps the file.
    """
    found: Counter[str] = Counter()
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        kind, _, value = line.partition(":")
        if " " in kind:  # a mapping's first line: its addresses, rights and file
            inside = line.endswith(f" {file}")
        elif inside and value.endswith(" kB"):
            found[kind] += 1024 * int(value.removesuffix(" kB"))
    return found
