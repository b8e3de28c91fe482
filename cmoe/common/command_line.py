"""What a program says of a wrong command line: the mistake, the nearest right word, no usage.

The usage is `--help`'s. Status 2 is a mistake in what was given; nothing has begun then.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from cmoe.common.nearest import did_you_mean, listed, near

LISTED_BY_HELP = "; --help lists all"
"""What follows an unknown word that is near to no known one."""

KINDS = {"int": "an integer", "float": "a number"}
"""What argparse's types are in words."""


class Parser(ArgumentParser):
    """argparse's, with every flag by its whole name, and each mistake in a sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        known = self._option_string_actions
        if not {"-h", "--help"} & set(words) and (unknown := list(_unknown(words, known))):
            hints = [did_you_mean(near(flag, known)) or LISTED_BY_HELP for flag in unknown]
            refuse(self.prog, [f"unknown flag {f}{h}" for f, h in zip(unknown, hints, strict=True)])
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        refuse(self.prog, [self._told(message)])

    def _told(self, message: str) -> str:
        """What argparse says, in our words where it is known."""
        if message.startswith(missing := "the following arguments are required: "):
            names = message.removeprefix(missing).split(", ")
            return f"no {listed(names)}; --help explains {'them' if names[1:] else 'it'}"
        if message.startswith(strays := "unrecognized arguments: "):
            return f"{message.removeprefix(strays)!r} stands behind no flag; --help lists all"
        if bare := re.fullmatch(r"argument (\S+): expected .*arguments?", message):
            return f"{bare[1]} needs a value; one that begins with - is given as {bare[1]}=VALUE"
        if wrong := re.match(r"argument (\S+): invalid (\w+)(?: value)?: '(.*?)'", message):
            flag, kind, value = wrong.groups()
            choices = self._option_string_actions[flag].choices or ()
            needed = f"one of {', '.join(choices)}" if choices else KINDS.get(kind, kind)
            return f"{flag} is {value!r}; {needed} is needed{did_you_mean(near(value, choices))}"
        return message


def refuse(prog: str, problems: Sequence[str]) -> NoReturn:
    """End the program with status 2, and say what was wrong with what it was given."""
    lines = [f"{len(problems)} mistakes:", *problems] if len(problems) > 1 else problems
    sys.stderr.write(f"{prog}: " + "\n  ".join(lines) + "\n")
    sys.exit(2)


def refuse_unknown(prog: str, kind: str, word: str, known: Collection[str]) -> NoReturn:
    """End the program as `refuse` does, with the nearest of the known words of a kind."""
    refuse(prog, [f"unknown {kind} {word}{did_you_mean(near(word, known)) or LISTED_BY_HELP}"])


def has_flag(words: Iterable[str], flag: str) -> bool:
    """Whether a command line gives a flag: what else is required may depend on it."""
    return any(word.partition("=")[0] == flag for word in words)


def is_flag(word: str) -> bool:
    """Whether a word of a command line is meant as a flag, and not as a value."""
    name = word.partition("=")[0]
    number = re.fullmatch(r"-(\d+\.?|\d*\.\d+)(e[-+]?\d+)?", word, re.IGNORECASE)
    return word.startswith("-") and len(word) > 1 and " " not in name and not number


def _unknown(words: Iterable[str], known: Collection[str]) -> Iterator[str]:
    for word in words:
        if word == "--":
            return
        if is_flag(word) and (name := word.partition("=")[0]) not in known:
            yield name
