"""What `--help` shows: the keys that are used most. `--help all` is jsonargparse's list of all."""

from __future__ import annotations

import re
from argparse import Action, ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cmoe.config.keys import Tree, leaves
from cmoe.methods.registry import methods

EVERYTHING = "all"
"""What `--help` is followed by, to list every key."""
MOST_USED = (
    "config",
    "name",
    "runs",
    "method",
    "model.name",
    "data.root",
    "data.tasks",
    "training.steps",
    "training.learning_rate",
    "cluster.workers",
)
WIDTH = 26  # of the first column


def asked_help(words: Sequence[str]) -> str | None:
    """What a command line asks help on: "" for the short one; None if it doesn't."""
    for position, word in enumerate(words):
        name, _, topic = word.partition("=")
        if name in ("-h", "--help"):
            return EVERYTHING if EVERYTHING in (topic, *words[position + 1 : position + 2]) else ""
    return None


def short_help(parser: ArgumentParser, tree: Tree) -> str:
    """The most used keys, the methods and the sections, for a parser with these keys."""
    return "\n".join(_lines(parser, tree)) + "\n"


def _lines(parser: ArgumentParser, tree: Tree) -> Iterator[str]:
    flags = parser._option_string_actions
    yield f"usage: {parser.prog} --config FILE [--KEY VALUE ...]"
    yield from ("", str(parser.description), "", "most used keys, as flags and in YAML files:")
    yield from _columns({f"--{key}": _explained(flags[f"--{key}"]) for key in MOST_USED})
    yield from ("", "methods:")
    yield from _columns({name: entry.about for name, entry in methods().items()})
    sections = [key for key, below in tree.items() if isinstance(below, dict)]
    others = [key for key in tree if key not in (*sections, *MOST_USED)]
    yield from ("", "sections, and other keys:", f"  {', '.join(sections)}")
    yield from (f"  {', '.join(others)}", "")
    yield f"--help {EVERYTHING} explains all {len(list(leaves(tree)))} keys."


def _explained(action: Action) -> str:
    """A key's first clause, and its default where it has one."""
    clause = re.split(r"[;:.](?:\s|$)", action.help or "", maxsplit=1)[0]
    default: Any = action.default
    if default is None or isinstance(default, list | tuple):
        return clause
    return clause if "SUPPRESS" in str(default) else f"{clause} (default: {default})"


def _columns(rows: Mapping[str, str]) -> Iterator[str]:
    for name, text in rows.items():
        yield f"  {name:<{WIDTH}}{text}"
