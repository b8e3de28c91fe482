"""A configuration's keys and types in words: the nearest right key, what a value has to be."""

from __future__ import annotations

from argparse import ArgumentError
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from cmoe.common.nearest import did_you_mean, near

Tree = dict[str, Any]
"""A configuration's keys: by name the type of a value, or the tree of a section."""


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
    if close:
        hint = did_you_mean([f"{prefix}{each}" for each in close])
    elif isinstance(section, dict) and "." in key:
        hint = f"; {key.rpartition('.')[0]} has {', '.join(section)}"
    else:
        hint = "; --help all lists all"
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

    Below a key whose value is a mapping any key is one of its; a mapping's value may be a section.
    """
    found: Any = tree
    for name in key.split("."):
        if isinstance(found, dict):
            found = found.get(name)
        elif get_origin(found) is dict:
            found = get_args(found)[1]
            found = tree_of(found) if isinstance(found, type) and is_dataclass(found) else found
        else:
            return None
    return found


def leaves(tree: Tree) -> list[str]:
    """All keys that have a value, dotted."""
    return [key for key in _keys(tree) if not isinstance(key_type(tree, key), dict)]


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
    if get_origin(hint) is dict and is_dataclass(kind := get_args(hint)[1]):
        return _wrong_sections(written, kind, yaml.safe_load(value) if text else value)
    parser = _one_value(hint)
    try:
        parser.parse_args([f"--value={value}"]) if text else parser.parse_object({"value": value})
    except ArgumentError:
        choices = [str(c) for c in get_args(hint)] if get_origin(hint) is Literal else []
        meant = did_you_mean(near(str(value), choices))
        return f"{written} is {value!r}; {described(hint)} is needed{meant}"
    return None


def _wrong_sections(written: str, kind: Any, value: Any) -> str | None:
    """The sentence about a mapping of names to sections, if something in it is wrong."""
    keys = tree_of(kind)
    if not isinstance(value, dict):
        return f"{written} is {value!r}; a mapping of names is needed, each with {', '.join(keys)}"
    needed = [each.name for each in fields(kind) if each.default is each.default_factory is MISSING]
    for name, section in value.items():
        here = f"{written}.{name}"
        if not isinstance(section, dict):
            return wrong_type(here, keys, section)
        for key, each in section.items():
            if key not in keys:
                meant = did_you_mean(near(str(key), keys)) or f"; there are {', '.join(keys)}"
                return f"{here}: unknown key {key}{meant}"
            if problem := wrong_type(f"{here}.{key}", keys[key], each):
                return problem
        if missing := [key for key in needed if key not in section]:
            return f"{here} has no {missing[0]}; {', '.join(needed)} are needed"
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
        return f"a mapping of names, each to {described(inner[1])},"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}.get(
        hint, str(hint)
    )
