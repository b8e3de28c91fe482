"""The parser of a run: flags, YAML files and help made of dataclasses by jsonargparse."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from cmoe.config.help import EVERYTHING, asked_help, short_help
from cmoe.config.keys import Tree, tree_of
from cmoe.config.mistakes import FILE, Given, cleaned
from cmoe.config.shipped import with_files


class ConfigError(Exception):
    """What is wrong with a configuration, a sentence each.

    Attributes:
        problems: The sentences.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class ConfigParser(ArgumentParser):
    """Flags and YAML files of dataclasses; mistakes are raised, all that are seen at once.

    Attributes:
        tree: The keys that there are.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # jsonargparse makes some of this class itself
        self.tree: Tree = {}
        self._given = Given({}, {})

    def add_settings(self, kind: type[Any], section: str = "") -> None:
        """A dataclass's keys, in a section or at the top."""
        self.add_class_arguments(kind, section or None)
        self.tree |= {section: tree_of(kind)} if section else tree_of(kind)

    def parse_args(self, args: Any = None, namespace: Any = None, **options: Any) -> Namespace:  # type: ignore[override]
        """As jsonargparse's.

        Raises:
            ConfigError: Unknown keys, values of the wrong type, files that can't be read.
        """
        words = [*with_files(sys.argv[1:] if args is None else args, f"--{FILE}")]
        if (topic := asked_help(words)) is not None:
            shown = self.format_help() if topic == EVERYTHING else short_help(self, self.tree)
            sys.stdout.write(shown)
            self.exit()
        self._given = Given(self.tree, self._option_string_actions)
        if not any(word in self._given.flags and word.endswith(("-h", "help")) for word in words):
            self._given.read(words)
            if self._given.problems:
                raise ConfigError([*self._given.problems, *self._given.wrong_types()])
        try:
            parsed: Namespace = super().parse_args(words, namespace, **options)
        except RecursionError as error:
            raise ConfigError(["a value is nested too deeply, or holds itself"]) from error
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """What jsonargparse didn't take, in our words where they are known."""
        if not self.exit_on_error:  # within jsonargparse, which tries several types
            super().error(message, ex)
        raise ConfigError(self._given.wrong_types() or [cleaned(message)]) from ex

    def refuse(self, problems: Sequence[str]) -> NoReturn:
        """Values that can't be: sentences that begin with their key, which say where it stands."""
        raise ConfigError([self._given.located(problem) for problem in problems])
