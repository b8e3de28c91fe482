"""JSON and YAML to plain values; a key that stands twice in one object is refused.

Both of Python's readers would take the last of the two without a word.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import yaml


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document; bytes are UTF-8, with or without a byte order mark.

    Raises:
        ValueError: It isn't one (`NaN` and `Infinity` aren't JSON), is nested too deeply, or a key
            stands twice in one object.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML document, of plain types alone.

    Raises:
        ValueError: It isn't one, or a key stands twice in one mapping.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(_sentence(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def compose_yaml(text: str) -> yaml.Node | None:
    """A YAML document as its nodes, which say where they stand; None for an empty one.

    Raises:
        ValueError: It isn't one, or a key stands twice in one mapping.
    """
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(_sentence(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return node


class KeysOnce:
    """A part of a YAML loader that refuses a mapping with a key twice, wherever it stands."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[misc]
        seen: dict[tuple[str, str], Any] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            first = seen.setdefault((key.tag, key.value), key.start_mark)
            if first is not key.start_mark:
                raise yaml.composer.ComposerError(
                    f"{key.value!r} stands here",
                    first,
                    "and once more here; each key stands once",
                    key.start_mark,
                )
        return node


class _StrictLoader(KeysOnce, yaml.SafeLoader):
    pass


def _sentence(error: yaml.YAMLError) -> str:
    """A reader's error in one line: what was read, and what was wrong, each with its place."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    said = ((error.context, error.context_mark), (error.problem, error.problem_mark))
    return ", ".join(
        f"{what} (line {mark.line + 1}, column {mark.column + 1})" if mark else what
        for what, mark in said
        if what
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r:.100} stands twice in one object; each stands once")
    return found


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number in JSON")
