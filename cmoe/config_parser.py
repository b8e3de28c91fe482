"""Reading a configuration's flags and YAML files, so that every mistake is told by its key.

jsonargparse makes flags, help and typed values of dataclasses. What it says of a mistake is its
own world's, one mistake at a time; and it drops an unknown section that is empty, and the first of
two keys of one name. So what was given is looked through before, and explained where it failed.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader

from cmoe.command_line import did_you_mean, is_flag, listed, near
from cmoe.parsing import compose_yaml

Tree = dict[str, Any]
"""A configuration's keys: by name the type of a value, or the tree of a section."""

FILE = "config"


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
        self._given = _Given({}, {})

    def add_settings(self, kind: type[Any], section: str = "") -> None:
        """A dataclass's keys, in a section or at the top."""
        self.add_class_arguments(kind, section or None)
        self.tree |= {section: tree_of(kind)} if section else tree_of(kind)

    def parse_args(self, args: Any = None, namespace: Any = None, **options: Any) -> Namespace:  # type: ignore[override]
        """As jsonargparse's.

        Raises:
            ConfigError: Unknown keys, values of the wrong type, files that can't be read.
        """
        words = list(sys.argv[1:] if args is None else args)
        self._given = _Given(self.tree, self._option_string_actions)
        if not any(word in self._given.flags and word.endswith(("-h", "help")) for word in words):
            self._given.read(words)
            if self._given.problems:
                raise ConfigError([*self._given.problems, *self._given.wrong_types()])
        parsed: Namespace = super().parse_args(words, namespace, **options)
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """What jsonargparse didn't take, in our words where they are known."""
        if not self.exit_on_error:  # within jsonargparse, which tries several types
            super().error(message, ex)
        raise ConfigError(self._given.wrong_types() or [_cleaned(message)]) from ex

    def refuse(self, problems: Sequence[str]) -> NoReturn:
        """Values that can't be: sentences that begin with their key, which say where it stands."""
        raise ConfigError([self._given.located(problem) for problem in problems])


def tree_of(kind: type[Any]) -> Tree:
    """The keys of a dataclass, and of those within it."""
    hints = get_type_hints(kind)
    return {
        each.name: tree_of(hint) if is_dataclass(hint := hints[each.name]) else hint  # type: ignore[arg-type]
        for each in fields(kind)
    }


def unknown_key(key: str, tree: Tree, written: str | None = None, prefix: str = "") -> str:
    """The sentence about a key that there isn't, with those that may have been meant.

    Args:
        key: Dotted.
        tree: The keys that there are.
        written: The key as it was given, if not so.
        prefix: Of the proposed keys.
    """
    close = nearest(key, tree)
    section = key_type(tree, key.rpartition(".")[0])
    hint = did_you_mean([f"{prefix}{each}" for each in close])
    if not close and isinstance(section, dict) and "." in key:
        hint = f"; {key.rpartition('.')[0]} has {', '.join(section)}"
    return f"unknown key {written or key}{hint}"


def nearest(key: str, tree: Tree) -> list[str]:
    """The keys that an unknown one may have been meant to be.

    A slip within a section comes before the same name in other sections, and that before what
    merely looks alike.
    """
    keys = list(_keys(tree))
    section, _, last = key.rpartition(".")
    for within in (section, *near(section, [k for k in tree if isinstance(tree[k], dict)])):
        known = key_type(tree, within) if within else None
        if isinstance(known, dict) and (found := near(last, known)):
            return [f"{within}.{found[0]}"]
    if same := [k for k in keys if k.rpartition(".")[2] == last.replace("-", "_")]:
        return same
    if found := near(key, [k for k in keys if not f"{k}.".startswith(f"{section}.")]):
        return found
    names = {k.rpartition(".")[2] for k in keys}
    return [k for name in near(last, names) for k in keys if k.rpartition(".")[2] == name]


def key_type(tree: Tree, key: str) -> Any:
    """The type of a key's value, or the tree of a section; None where there is no such key.

    Below a key whose value is a mapping any key is one of its.
    """
    found: Any = tree
    for name in key.split("."):
        if isinstance(found, dict):
            found = found.get(name)
        elif get_origin(found) is dict:
            found = get_args(found)[1]
        else:
            return None
    return found


def _keys(tree: Tree, prefix: str = "") -> list[str]:
    found = []
    for name, below in tree.items():
        found.append(f"{prefix}{name}")
        if isinstance(below, dict):
            found += _keys(below, f"{prefix}{name}.")
    return found


def wrong_type(written: str, hint: Any, value: Any, *, text: bool = False) -> str | None:
    """The sentence about a value of another type than its key's, if it is one.

    Args:
        written: The key as it was given.
        hint: The key's type, or the tree of a section.
        value: What was given.
        text: Whether it comes from a command line, to be read as YAML.
    """
    if isinstance(hint, dict):
        shown = "null" if value is None else repr(value)
        return f"{written} is {shown}; a section is needed, with its keys: {', '.join(hint)}"
    parser = _one_value(hint)
    try:
        parser.parse_args([f"--value={value}"]) if text else parser.parse_object({"value": value})
    except ArgumentError:
        choices = [str(c) for c in get_args(hint)] if get_origin(hint) is Literal else []
        close = near(str(value), choices)
        meant = did_you_mean(close) if close else ""
        return f"{written} is {value!r}; {described(hint)} is needed{meant}"
    return None


@cache
def _one_value(hint: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def described(hint: Any) -> str:
    """A type in words."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join("null" if one is type(None) else described(one) for one in inner)
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if kind in (tuple, list):
        return f"a list, as [a, b], each {described(inner[0])},"
    if kind is dict:
        return "a mapping"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}.get(
        hint, str(hint)
    )


@dataclass(frozen=True)
class _Value:
    key: str
    written: str  # the key as it was given, with its file and line
    value: Any
    text: bool


@dataclass(frozen=True)
class _Source:
    """A YAML document: where each of its keys stands."""

    name: str  # of the file, or of the flag
    folder: Path
    node: yaml.Node | None = None

    def place(self, path: Sequence[str]) -> str:
        """Where a key stands, to be put before it."""
        node, line = self.node, None
        for name in path:
            if not isinstance(node, yaml.MappingNode):
                break
            for key, below in node.value:
                if key.value == name:
                    node, line = below, key.start_mark.line + 1
                    break
            else:
                break
        return f"{self.name}:{line}: " if line and self.node is not None else f"{self.name}: "


class _Given:
    """All keys and values that a command line and its files give, and what is wrong with them.

    Attributes:
        problems: Sentences about files, keys and sections.
        flags: Those that there are, with what argparse knows of each.
    """

    def __init__(self, tree: Tree, flags: Mapping[str, Any]) -> None:
        self.problems: list[str] = []
        self.flags = flags
        self._tree = tree
        self._values: list[_Value] = []

    def read(self, words: Sequence[str]) -> None:
        position = 0
        while position < len(words) and words[position] != "--":
            name, equals, value = words[position].partition("=")
            position += 1
            if not is_flag(name):
                continue
            if not equals and position < len(words) and not is_flag(words[position]):
                equals, value = " ", words[position]
                position += 1
            self._flag(name, value if equals else None)

    def wrong_types(self) -> list[str]:
        """Sentences about values of the wrong type."""
        found = (
            wrong_type(each.written, key_type(self._tree, each.key), each.value, text=each.text)
            for each in self._values
        )
        return [problem for problem in found if problem]

    def located(self, problem: str) -> str:
        """A sentence that begins with a key, and where that key was given last."""
        key = problem.partition(" ")[0]
        written = [each.written for each in self._values if each.key == key and not each.text]
        return f"{written[-1]}{problem.removeprefix(key)}" if written else problem

    def _flag(self, flag: str, value: str | None) -> None:
        key, hint = flag.lstrip("-"), None
        if flag.startswith("--"):
            hint = key_type(self._tree, key)
        if flag == f"--{FILE}" and value:
            self._file(value)
        elif hint is None:
            if flag not in self.flags:
                self.problems.append(unknown_key(key, self._tree, flag, "--"))
        elif value is None:
            return  # argparse knows which may be bare
        elif isinstance(hint, dict):
            self._section(value, hint, key, flag, Path())
        elif value[:1] not in ("{", "[") or self._composed(value, flag):
            self._values.append(_Value(key, flag, value, text=True))

    def _file(self, name: str, prefix: str = "", folder: Path = Path()) -> None:
        file = folder / name
        if name.lstrip()[:1] == "{":  # jsonargparse takes the text itself, too
            self._document(name, _Source(f"--{FILE}", folder), prefix)
            return
        try:
            if file.exists() and not file.is_file():
                raise OSError(0, "a YAML file is needed, and this is none")
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            self.problems.append(f"{file}: no text in UTF-8; a YAML file is needed")
        except OSError as error:
            beside = [str(f) for f in sorted(file.parent.glob("*.yaml"))]
            close = near(str(file), beside)
            self.problems.append(f"{file}: {error.strerror}{did_you_mean(close) if close else ''}")
        else:
            self._document(text, _Source(str(file), file.parent), prefix)

    def _document(self, text: str, source: _Source, prefix: str) -> None:
        node = self._composed(text, source.name)
        if node is None:
            return
        if not source.name.startswith("--"):
            source = _Source(source.name, source.folder, node)
        try:
            values = get_loader("yaml")(text)
        except yaml.YAMLError as error:
            self.problems.append(f"{source.name}: {' '.join(str(error).split())}")
            return
        if isinstance(values, dict):
            below = key_type(self._tree, prefix) if prefix else self._tree
            self._mapping(values, below, prefix.split(".") if prefix else [], source, [])
        else:
            self.problems.append(
                f"{source.name}: not a mapping of keys to values; a space follows each colon"
            )

    def _composed(self, text: str, name: str) -> yaml.Node | None:
        """The document, where it is one and every key of it stands once."""
        try:
            node = compose_yaml(text)
        except ValueError as error:
            self.problems.append(f"{name}: {error}")
            return None
        if node is None:
            self.problems.append(f"{name}: empty; a mapping of keys to values is needed")
        return node

    def _mapping(
        self,
        values: Mapping[Any, Any],
        tree: Tree,
        section: Sequence[str],
        source: _Source,
        path: Sequence[str],
    ) -> None:
        """Keys of a file.

        Args:
            values: Of one section.
            tree: The keys that it has.
            section: Its own key.
            source: The file.
            path: Where it stands in that file.
        """
        for name, value in values.items():
            key = ".".join([*section, str(name)])
            here = source.place([*path, str(name)])
            hint = key_type(tree, str(name))
            if not section and name == FILE:
                self._file(str(value), folder=source.folder)
            elif hint is None:
                inside = value if isinstance(value, dict) else ()
                written = ", ".join(f"{key}.{each}" for each in inside) or key
                self.problems.append(f"{here}{unknown_key(key, self._tree, written)}")
            elif not isinstance(hint, dict):
                self._take(_Value(key, f"{here}{key}", value, text=False), source)
            elif isinstance(value, dict):
                self._mapping(value, hint, key.split("."), source, [*path, str(name)])
            else:
                self._section(value, hint, key, f"{here}{key}", source.folder)

    def _take(self, given: _Value, source: _Source) -> None:
        # `training: {steps: 1}` beside `training.steps: 2`: two spellings of one key.
        same = [v for v in self._values if v.key == given.key and not v.text]
        if any(v.written.startswith(f"{source.name}:") for v in same):
            self.problems.append(f"{given.written} stands twice; each key stands once")
        self._values.append(given)

    def _section(self, value: Any, keys: Tree, key: str, written: str, folder: Path) -> None:
        """A section that isn't written out: the name of a file that has it, or its text."""
        if isinstance(value, str) and value.lstrip()[:1] == "{":
            self._document(value, _Source(written, folder), key)
        elif isinstance(value, str) and (folder / value).is_file():
            self._file(value, key, folder)
        else:
            self.problems.append(wrong_type(written, keys, value) or written)


def _cleaned(message: str) -> str:
    """A sentence of jsonargparse's about what has no key of its own."""
    if message.startswith(strays := "unrecognized arguments: "):
        return (
            f"{message.removeprefix(strays)!r} stands after no key; settings are given as --key "
            "value, and a list as one word: --data.tasks '[GQA, VQAv2]'"
        )
    if message.startswith(missing := "the following arguments are required: "):
        keys = message.removeprefix(missing).split(", ")
        return f"no {listed(keys)}; give --{keys[0]} VALUE, or {keys[0]} in the file of --{FILE}"
    if bare := re.fullmatch(r"argument (\S+): expected one argument", message):
        return f"{bare[1]} needs a value; one that begins with - is given as {bare[1]}=VALUE"
    return re.sub(r"\s+", " ", message)
