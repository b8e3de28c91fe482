"""What is wrong with a configuration's flags and YAML files, told by key, file and line.

jsonargparse makes flags, help and typed values of dataclasses. What it says of a mistake is its
own world's, one mistake at a time; and it drops an unknown section that is empty, and the first of
two keys of one name. So what was given is looked through before, and explained where it failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

import yaml
from jsonargparse import get_loader

from cmoe.common.command_line import is_flag
from cmoe.common.nearest import did_you_mean, listed, near
from cmoe.common.parsing import compose_yaml
from cmoe.config.keys import Tree, key_type, unknown_key, wrong_type
from cmoe.config.shipped import find_config

FILE = "config"
OTHERS = {FILE: str, "help": bool, "print_config": str}  # flags that are no settings


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
    keys: set[str] = field(default_factory=set)  # all that it has, dotted

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


class Given:
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
        self._open: list[Path] = []  # files that are being read, each named by the one before

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
        if flag == f"--{FILE}" and value is not None:
            self._named_file(value)
        elif hint is None:
            if flag not in self.flags:
                self.problems.append(unknown_key(key, self._tree | OTHERS, flag, "--"))
        elif value is None:
            return  # argparse knows which may be bare
        elif isinstance(hint, dict):
            self._section(value, hint, key, flag, Path())
        elif get_origin(hint) is dict:
            # jsonargparse would take the text itself for a value of whatever type fails.
            if self._composed(value, flag):
                given = yaml.safe_load(value)  # null is no mapping, whatever the type says
                if problem := wrong_type(flag, hint, "null" if given is None else given):
                    self.problems.append(problem)
        elif get_origin(hint) not in (list, tuple) or self._composed(value, flag):
            self._values.append(_Value(key, flag, value, text=True))

    def _named_file(self, name: str) -> None:
        try:
            find_config(name)
        except ValueError as error:
            self.problems.append(str(error))
        else:
            self._file(name)

    def _file(self, name: str, prefix: str = "", folder: Path = Path()) -> None:
        file = folder / name
        if name.lstrip()[:1] == "{":  # jsonargparse takes the text itself, too
            self._document(name, _Source(f"--{FILE}", folder), prefix)
            return
        try:
            if file.exists() and not file.is_file():
                raise OSError(0, "a YAML file is needed, and this is none")
            text = file.read_text(encoding="utf-8")
        except ValueError:  # UnicodeDecodeError is one
            self.problems.append(f"{file}: no text in UTF-8; a YAML file is needed")
        except OSError as error:
            beside = [str(f) for f in sorted(file.parent.glob("*.yaml"))]
            close = near(str(file), beside)
            self.problems.append(f"{file}: {error.strerror}{did_you_mean(close) if close else ''}")
        else:
            if file.resolve() in self._open:
                self.problems.append(f"{file}: names itself as its {prefix or FILE}")
                return
            self._open.append(file.resolve())
            self._document(text, _Source(str(file), file.parent), prefix)
            self._open.pop()

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
                self.problems.append(f"{here}{unknown_key(key, self._tree | {FILE: str}, written)}")
            elif not isinstance(hint, dict):
                if key in source.keys:  # `training: {steps: 1}` beside `training.steps: 2`
                    self.problems.append(f"{here}{key} stands twice; each key stands once")
                source.keys.add(key)
                self._values.append(_Value(key, f"{here}{key}", value, text=False))
            elif isinstance(value, dict):
                self._mapping(value, hint, key.split("."), source, [*path, str(name)])
            else:
                self._section(value, hint, key, f"{here}{key}", source.folder)

    def _section(self, value: Any, keys: Tree, key: str, written: str, folder: Path) -> None:
        """A section that isn't written out: the name of a file that has it, or its text."""
        if isinstance(value, str) and value.lstrip()[:1] == "{":
            self._document(value, _Source(written, folder), key)
        elif isinstance(value, str) and (folder / value).is_file():
            self._file(value, key, folder)
        else:
            self.problems.append(wrong_type(written, keys, value) or written)


def cleaned(message: str) -> str:
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
